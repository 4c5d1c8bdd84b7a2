package dev.shadowkv;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.EventType;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.Percentage;
import jdk.jfr.StackTrace;

/** The oldest tokens of a full recent window went into a layer's index. */
@Name("dev.shadowkv.Fold")
@Label("Fold")
@Description("The oldest tokens of a full recent window went into a layer's index")
@Category("ShadowKV")
@StackTrace(false)
final class FoldEvent extends Event {

    private static final EventType TYPE = EventType.getEventType(FoldEvent.class);

    @Label("Layer")
    int layer;
    @Label("First token")
    long first;
    @Label("Tokens")
    long tokens;
    @Label("Residual energy")
    @Description("Share of the tokens' key energy that the basis misses, chunks that stay dense included")
    @Percentage
    float residual;
    @Label("Dense chunks")
    @Description("Chunks that stay dense because the basis misses too much of them")
    int dense;

    /** Asked before an event is made, so that none is made in vain. */
    static boolean on() {
        return TYPE.isEnabled();
    }
}
