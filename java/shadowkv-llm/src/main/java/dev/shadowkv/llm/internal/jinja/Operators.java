package dev.shadowkv.llm.internal.jinja;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Arithmetic, comparison and slicing by Python's rules. */
final class Operators {
    private Operators() {}

    static Object unary(String operator, Object value) {
        if (operator.equals("not")) {
            return !Values.truth(value);
        }
        Number number = Values.number(value);
        if (operator.equals("+")) {
            return number;
        }
        return number instanceof Long whole ? (Object) Math.negateExact(whole) : (Object) (-number.doubleValue());
    }

    static Object binary(String operator, Object left, Object right) {
        if (operator.equals("~")) {
            return Values.print(left) + Values.print(right);
        }
        if (operator.equals("+") && left instanceof String a && right instanceof String b) {
            return a + b;
        }
        if (operator.equals("+") && left instanceof List<?> a && right instanceof List<?> b) {
            List<Object> joined = new ArrayList<>(a);
            joined.addAll(b);
            return joined;
        }
        if (operator.equals("*") && (repeats(left, right) || repeats(right, left))) {
            Object sequence = repeats(left, right) ? left : right;
            int times = Math.max(0, Values.integer(sequence == left ? right : left));
            return sequence instanceof String text ? text.repeat(times) : repeated((List<?>) sequence, times);
        }
        if (!Values.isNumber(left) || !Values.isNumber(right)) {
            throw new JinjaException(
                    "cannot compute " + Values.type(left) + " " + operator + " " + Values.type(right));
        }
        Number a = Values.number(left);
        Number b = Values.number(right);
        try {
            return a instanceof Long i && b instanceof Long j && !operator.equals("/")
                    ? whole(operator, i, j)
                    : (Object) fraction(operator, a.doubleValue(), b.doubleValue());
        } catch (ArithmeticException e) {
            throw new JinjaException("cannot compute " + a + " " + operator + " " + b + ": " + e.getMessage());
        }
    }

    private static boolean repeats(Object sequence, Object times) {
        return (sequence instanceof String || sequence instanceof List<?>) && Values.isNumber(times);
    }

    private static List<Object> repeated(List<?> list, int times) {
        List<Object> repeated = new ArrayList<>();
        for (int i = 0; i < times; i++) {
            repeated.addAll(list);
        }
        return repeated;
    }

    private static Object whole(String operator, long a, long b) {
        return switch (operator) {
            case "+" -> Math.addExact(a, b);
            case "-" -> Math.subtractExact(a, b);
            case "*" -> Math.multiplyExact(a, b);
            case "//" -> Math.floorDiv(a, b);
            case "%" -> Math.floorMod(a, b);
            case "**" -> {
                double power = Math.pow(a, b);
                yield b >= 0 && Math.abs(power) < 1L << 53 ? (Object) (long) power : (Object) power;
            }
            default -> throw new JinjaException("unknown operator " + operator);
        };
    }

    private static double fraction(String operator, double a, double b) {
        if (b == 0 && (operator.equals("/") || operator.equals("//") || operator.equals("%"))) {
            throw new ArithmeticException("division by zero");
        }
        return switch (operator) {
            case "+" -> a + b;
            case "-" -> a - b;
            case "*" -> a * b;
            case "/" -> a / b;
            case "//" -> Math.floor(a / b);
            case "%" -> a - Math.floor(a / b) * b;
            case "**" -> Math.pow(a, b);
            default -> throw new JinjaException("unknown operator " + operator);
        };
    }

    static boolean compare(String operator, Object left, Object right) {
        return switch (operator) {
            case "==" -> Values.equal(left, right);
            case "!=" -> !Values.equal(left, right);
            case "<" -> Values.compare(left, right) < 0;
            case "<=" -> Values.compare(left, right) <= 0;
            case ">" -> Values.compare(left, right) > 0;
            case ">=" -> Values.compare(left, right) >= 0;
            case "in" -> contains(right, left);
            default -> !contains(right, left);
        };
    }

    static boolean contains(Object container, Object value) {
        return switch (container) {
            case String text -> text.contains(Values.string(value));
            case List<?> list -> list.stream().anyMatch(item -> Values.equal(item, value));
            case Map<?, ?> map -> map.containsKey(value);
            case Values.Undefined undefined -> false;
            case null, default -> throw new JinjaException(Values.type(container) + " contains nothing");
        };
    }

    static Object slice(Object target, Integer from, Integer to, Integer step) {
        if (target instanceof Values.Undefined undefined) {
            throw new JinjaException(undefined.what() + " is undefined, it has no elements");
        }
        if (!(target instanceof List<?>) && !(target instanceof String)) {
            return new Values.Undefined("a slice of " + Values.type(target));
        }
        List<Object> items = Values.iterate(target);
        int size = items.size();
        int stride = step == null ? 1 : step;
        if (stride == 0) {
            throw new JinjaException("a slice has step 0");
        }
        int low = stride > 0 ? 0 : -1;
        int high = stride > 0 ? size : size - 1;
        int start = from == null ? (stride > 0 ? low : high) : clamp(from < 0 ? from + size : from, low, high);
        int end = to == null ? (stride > 0 ? high : low) : clamp(to < 0 ? to + size : to, low, high);
        List<Object> sliced = new ArrayList<>();
        for (int i = start; stride > 0 ? i < end : i > end; i += stride) {
            sliced.add(items.get(i));
        }
        if (target instanceof String) {
            StringBuilder text = new StringBuilder();
            sliced.forEach(text::append);
            return text.toString();
        }
        return sliced;
    }

    private static int clamp(int value, int low, int high) {
        return Math.max(low, Math.min(value, high));
    }
}
