package dev.shadowkv;

import java.util.Locale;

/**
 * How many sessions of how many tokens a cache is made for, and the memory that this takes. {@link #of} states the
 * wish; a cache builder's {@code plan()} answers with the bytes, to the byte and before anything is allocated.
 *
 * @param sessions sessions that can be open at once when each has {@code tokens}; shorter ones leave room for more
 * @param tokens capacity of each session, and the largest that can be opened
 * @param stagingTokens longest prompt that can be filled in before sealing
 * @param stagingLayers layers of prompts that can be unsealed at once, over all sessions; 0 in a wish: all layers of
 *     one session
 * @param sessionDeviceBytes device memory of one session of {@code tokens}
 * @param sessionPinnedBytes pinned memory of one session of {@code tokens}
 * @param stagingBytes device memory for prompts that are not sealed
 * @param tableBytes device memory for tables, temporaries and operands from the host
 * @param workspaceBytes device memory that the decode path reserves
 */
public record MemoryPlan(int sessions, long tokens, long stagingTokens, int stagingLayers, long sessionDeviceBytes,
                         long sessionPinnedBytes, long stagingBytes, long tableBytes, long workspaceBytes) {

    /** Checks the ranges. */
    public MemoryPlan {
        if (sessions < 1 || tokens < 1 || tokens > 1L << 30) {
            throw new IllegalArgumentException(
                    "sessions must be at least 1 and tokens from 1 to 2^30: " + sessions + ", " + tokens);
        }
        if (stagingTokens < 1 || stagingTokens > tokens || stagingLayers < 0) {
            throw new IllegalArgumentException("stagingTokens must be from 1 to " + tokens
                    + " and stagingLayers not negative: " + stagingTokens + ", " + stagingLayers);
        }
    }

    /** Room for a number of sessions of a number of tokens each; prompts of any length, one session at a time. */
    public static MemoryPlan of(int sessions, long tokens) {
        return new MemoryPlan(sessions, tokens, tokens, 0, 0, 0, 0, 0, 0);
    }

    /**
     * The same with other room for prompts that are not sealed yet.
     *
     * @param maxTokens longest prompt
     * @param layers how many layers can be unsealed at once: 1 if each layer's whole prompt is filled in and sealed
     *     before the next layer's, the model's layers if prompts come in chunks; times the sessions filled in at once
     */
    public MemoryPlan withStaging(long maxTokens, int layers) {
        return new MemoryPlan(sessions, tokens, maxTokens, layers, 0, 0, 0, 0, 0);
    }

    /** Device memory in all. */
    public long deviceBytes() {
        return sessions * sessionDeviceBytes + stagingBytes + tableBytes + workspaceBytes;
    }

    /** Pinned host memory in all. */
    public long pinnedBytes() {
        return sessions * sessionPinnedBytes;
    }

    /** Device bytes that one token of a full session takes, over all layers. */
    public double deviceBytesPerToken() {
        return (double) sessionDeviceBytes / tokens;
    }

    @Override
    public String toString() {
        return String.format(Locale.ROOT,
                "%d sessions of %d tokens: device %s (a session %s, staging %s, tables %s, workspace %s), pinned %s",
                sessions, tokens, text(deviceBytes()), text(sessionDeviceBytes), text(stagingBytes), text(tableBytes),
                text(workspaceBytes), text(pinnedBytes()));
    }

    private static String text(long bytes) {
        return bytes < 1 << 20 ? bytes + " B" : String.format(Locale.ROOT, "%.1f MiB", bytes / 1048576.0);
    }
}
