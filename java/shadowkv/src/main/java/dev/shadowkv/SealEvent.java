package dev.shadowkv;

import jdk.jfr.Category;
import jdk.jfr.DataAmount;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.EventType;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.Percentage;
import jdk.jfr.StackTrace;

/** A layer of a session was sealed. */
@Name("dev.shadowkv.Seal")
@Label("Seal")
@Description("A layer of a session was sealed")
@Category("ShadowKV")
@StackTrace(false)
final class SealEvent extends Event {

    private static final EventType TYPE = EventType.getEventType(SealEvent.class);

    @Label("Layer")
    int layer;
    @Label("Tokens")
    long tokens;
    @Label("Exact")
    @Description("Short enough to stay dense")
    boolean exact;
    @Label("Captured energy")
    @Percentage
    float energy;
    @Label("Pinned bytes")
    @DataAmount
    long pinnedBytes;

    /** Asked before an event is made, so that none is made in vain. */
    static boolean on() {
        return TYPE.isEnabled();
    }
}
