package dev.shadowkv;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.EventType;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** A batch made a decode step. */
@Name("dev.shadowkv.DecodeStep")
@Label("Decode Step")
@Description("A batch made a decode step")
@Category("ShadowKV")
@StackTrace(false)
final class DecodeStepEvent extends Event {

    private static final EventType TYPE = EventType.getEventType(DecodeStepEvent.class);

    @Label("Sessions")
    int sessions;
    @Label("Longest session")
    long tokens;

    /** Asked before an event is made, so that none is made in vain. */
    static boolean on() {
        return TYPE.isEnabled();
    }
}
