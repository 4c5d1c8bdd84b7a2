package dev.shadowkv;

/** Refuses options outside their limits, by name and before anything is allocated. */
final class Limits {

    private Limits() {
    }

    static void check(String name, boolean within, String limit, Object value) {
        if (!within) {
            throw new ShadowKvException(Status.UNSUPPORTED, "build cache", name + " must be " + limit + ": " + value);
        }
    }
}
