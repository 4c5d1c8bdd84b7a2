package dev.shadowkv.kernels;

import java.lang.foreign.ValueLayout;

import dev.shadowkv.Device;
import dev.shadowkv.internal.ffi.skv_session_state;

/** Session states in device memory: change entries, then upload. One caller at a time. */
public final class SessionStates extends Table {

    /** A table whose entries are idle. */
    public SessionStates(Device device, long entries) {
        super(device, entries, skv_session_state.sizeof());
    }

    /** Bytes of device memory of an entry. */
    public static long entryBytes() {
        return skv_session_state.sizeof();
    }

    /** Changes an entry on the host. */
    public void set(long index, SessionState state) {
        set(index, state.length(), state.recentBegin(), state.indexedChunks(), state.outliers(), state.step());
    }

    /** Changes an entry on the host without an object for it. */
    public void set(long index, long length, long recentBegin, int indexedChunks, int outliers, int step) {
        long at = offset(index);
        host.set(ValueLayout.JAVA_LONG, at + skv_session_state.length$offset(), length);
        host.set(ValueLayout.JAVA_LONG, at + skv_session_state.recent_begin$offset(), recentBegin);
        host.set(ValueLayout.JAVA_INT, at + skv_session_state.indexed_chunks$offset(), indexedChunks);
        host.set(ValueLayout.JAVA_INT, at + skv_session_state.outliers$offset(), outliers);
        host.set(ValueLayout.JAVA_INT, at + skv_session_state.step$offset(), step);
    }
}
