package dev.shadowkv.cli;

import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Numbers with a binary suffix: 122k is 122 * 1024, 80g is 80 * 2^30. */
final class Quantity {
    private static final Pattern TEXT = Pattern.compile("(\\d{1,12})([kmg]?)");

    private Quantity() {}

    /** Refuses numbers below 1. */
    static void requirePositive(String option, int... values) {
        for (int value : values) {
            if (value < 1) {
                throw new IllegalArgumentException(option + " must be positive: " + value);
            }
        }
    }

    /**
     * Reads a number.
     *
     * @throws IllegalArgumentException when it is none, or not positive; the message names the option
     */
    static long of(String option, String text) {
        Matcher matcher = TEXT.matcher(text.strip().toLowerCase(Locale.ROOT));
        if (!matcher.matches()) {
            throw new IllegalArgumentException(
                    option + " is " + text + ", it must be a whole number, perhaps with k, m or g (binary) behind it");
        }
        int shift = switch (matcher.group(2)) {
            case "k" -> 10;
            case "m" -> 20;
            case "g" -> 30;
            default -> 0;
        };
        long number = Long.parseLong(matcher.group(1));
        if (number == 0 || number > Long.MAX_VALUE >> shift) {
            throw new IllegalArgumentException(option + " is " + text + ", it must be positive and below 2^63");
        }
        return number << shift;
    }
}
