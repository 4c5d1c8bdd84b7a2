package dev.shadowkv;

import jdk.jfr.Category;
import jdk.jfr.DataAmount;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.EventType;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** Tokens were added to a layer of a session. */
@Name("dev.shadowkv.Append")
@Label("Append")
@Description("Tokens were added to a layer of a session")
@Category("ShadowKV")
@StackTrace(false)
final class AppendEvent extends Event {

    private static final EventType TYPE = EventType.getEventType(AppendEvent.class);

    @Label("Layer")
    int layer;
    @Label("Tokens")
    long tokens;
    @Label("Bytes")
    @DataAmount
    long bytes;

    /** Asked before an event is made, so that none is made in vain. */
    static boolean on() {
        return TYPE.isEnabled();
    }
}
