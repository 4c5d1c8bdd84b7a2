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

/** Values that decode steps brought from host memory. */
@Name("dev.shadowkv.Fetch")
@Label("Fetch")
@Description("Values that decode steps brought from host memory")
@Category("ShadowKV")
@StackTrace(false)
final class FetchEvent extends Event {

    private static final EventType TYPE = EventType.getEventType(FetchEvent.class);

    @Label("Selected chunks")
    long selectedChunks;
    @Label("Fetched chunks")
    long fetchedChunks;
    @Label("Fetched bytes")
    @DataAmount
    long bytes;
    @Label("Hit rate")
    @Percentage
    double hitRate;

    /** Asked before an event is made, so that none is made in vain. */
    static boolean on() {
        return TYPE.isEnabled();
    }
}
