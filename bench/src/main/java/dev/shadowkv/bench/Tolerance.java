package dev.shadowkv.bench;

/** A result that is not what double precision says ends the benchmark. */
final class Tolerance {

    private Tolerance() {
    }

    /** Fails when the result is not within {@code allowed} of what is expected; NaN is never. */
    static void within(String what, double result, double expected, double allowed) {
        if (!(Math.abs(result - expected) <= allowed)) {
            throw new AssertionError(what + " is " + result + ", but should be " + expected + " within " + allowed);
        }
    }

    static void require(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
