package dev.shadowkv.llm.internal.jinja;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** What Python does with values: truth, equality, order, printing, iteration. */
final class Values {
    /** Something that can be called. */
    interface Function {
        Object call(List<Object> positional, Map<String, Object> named);
    }

    /** The value of a name or attribute that does not exist; printing it gives nothing, using it fails. */
    record Undefined(String what) {}

    /** What {@code namespace()} makes: the one thing whose fields a template can set. */
    record Namespace(Map<String, Object> fields) {}

    private Values() {}

    static boolean truth(Object value) {
        return switch (value) {
            case null -> false;
            case Undefined undefined -> false;
            case Boolean flag -> flag;
            case String text -> !text.isEmpty();
            case Number number -> number.doubleValue() != 0;
            case List<?> list -> !list.isEmpty();
            case Map<?, ?> map -> !map.isEmpty();
            default -> true;
        };
    }

    static boolean equal(Object left, Object right) {
        if (isNumber(left) && isNumber(right)) {
            return number(left).doubleValue() == number(right).doubleValue();
        }
        if (left instanceof List<?> a && right instanceof List<?> b) {
            if (a.size() != b.size()) {
                return false;
            }
            for (int i = 0; i < a.size(); i++) {
                if (!equal(a.get(i), b.get(i))) {
                    return false;
                }
            }
            return true;
        }
        if (left instanceof Undefined && right instanceof Undefined) {
            return true;
        }
        return Objects.equals(left, right);
    }

    static int compare(Object left, Object right) {
        if (isNumber(left) && isNumber(right)) {
            return Double.compare(number(left).doubleValue(), number(right).doubleValue());
        }
        if (left instanceof String a && right instanceof String b) {
            return a.compareTo(b);
        }
        throw new JinjaException("cannot compare " + type(left) + " with " + type(right));
    }

    static boolean isNumber(Object value) {
        return value instanceof Long || value instanceof Integer || value instanceof Double || value instanceof Boolean;
    }

    static Number number(Object value) {
        return switch (value) {
            case Boolean flag -> flag ? 1L : 0L;
            case Integer small -> small.longValue();
            case Number number -> number;
            case null, default -> throw new JinjaException("expected a number instead of " + type(value));
        };
    }

    static int integer(Object value) {
        if (number(value) instanceof Long number) {
            return Math.toIntExact(number);
        }
        throw new JinjaException("expected an integer instead of " + type(value));
    }

    static String string(Object value) {
        if (value instanceof String text) {
            return text;
        }
        throw new JinjaException("expected a string instead of " + type(value));
    }

    static String type(Object value) {
        return switch (value) {
            case null -> "none";
            case Undefined undefined -> undefined.what() + ", which is undefined";
            case Boolean flag -> "a boolean";
            case String text -> "a string";
            case Double number -> "a float";
            case Number number -> "an integer";
            case List<?> list -> "a list";
            case Map<?, ?> map -> "a mapping";
            default -> "an object";
        };
    }

    static List<Object> iterate(Object value) {
        return switch (value) {
            case List<?> list -> new ArrayList<>(list);
            case Map<?, ?> map -> new ArrayList<>(map.keySet());
            case String text -> new ArrayList<>(
                    text.codePoints().mapToObj(Character::toString).toList());
            case Undefined undefined -> new ArrayList<>();
            case null, default -> throw new JinjaException("cannot iterate over " + type(value));
        };
    }

    static int length(Object value) {
        return value instanceof String text ? text.codePointCount(0, text.length()) : iterate(value).size();
    }

    /** As {@code str()} prints it. */
    static String print(Object value) {
        return switch (value) {
            case String text -> text;
            case Undefined undefined -> "";
            case null, default -> represent(value);
        };
    }

    private static String represent(Object value) {
        return switch (value) {
            case null -> "None";
            case Boolean flag -> flag ? "True" : "False";
            case Double number -> decimal(number);
            case String text -> quote(text);
            case List<?> list -> {
                List<String> items = new ArrayList<>();
                list.forEach(item -> items.add(represent(item)));
                yield "[" + String.join(", ", items) + "]";
            }
            case Map<?, ?> map -> {
                List<String> items = new ArrayList<>();
                map.forEach((key, item) -> items.add(represent(key) + ": " + represent(item)));
                yield "{" + String.join(", ", items) + "}";
            }
            default -> value.toString();
        };
    }

    private static String quote(String text) {
        char quote = text.contains("'") && !text.contains("\"") ? '"' : '\'';
        String escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r");
        return quote + (quote == '\'' ? escaped.replace("'", "\\'") : escaped) + quote;
    }

    private static String decimal(double number) {
        if (number == Math.rint(number) && Math.abs(number) < 1e16) {
            return (long) number + ".0";
        }
        return Double.toString(number).replace("E-", "e-").replace("E", "e+");
    }

    /** As Python's {@code json.dumps} writes it, without escaping what is not ASCII. */
    static String json(Object value, int indent) {
        StringBuilder json = new StringBuilder();
        json(value, indent, 0, json);
        return json.toString();
    }

    private static void json(Object value, int indent, int depth, StringBuilder json) {
        switch (value) {
            case null -> json.append("null");
            case Boolean flag -> json.append(flag);
            case String text -> jsonString(text, json);
            case Double number -> json.append(decimal(number));
            case Number number -> json.append(number);
            case List<?> list -> {
                json.append('[');
                boolean first = true;
                for (Object item : list) {
                    separate(first, indent, depth + 1, json);
                    json(item, indent, depth + 1, json);
                    first = false;
                }
                close(first, indent, depth, json).append(']');
            }
            case Map<?, ?> map -> {
                json.append('{');
                boolean first = true;
                for (Map.Entry<?, ?> entry : map.entrySet()) {
                    separate(first, indent, depth + 1, json);
                    jsonString(print(entry.getKey()), json);
                    json.append(": ");
                    json(entry.getValue(), indent, depth + 1, json);
                    first = false;
                }
                close(first, indent, depth, json).append('}');
            }
            default -> throw new JinjaException(type(value) + " cannot be written as JSON");
        }
    }

    private static void separate(boolean first, int indent, int depth, StringBuilder json) {
        if (!first) {
            json.append(indent < 0 ? ", " : ",");
        }
        if (indent >= 0) {
            json.append('\n').append(" ".repeat(indent * depth));
        }
    }

    private static StringBuilder close(boolean empty, int indent, int depth, StringBuilder json) {
        return indent < 0 || empty ? json : json.append('\n').append(" ".repeat(indent * depth));
    }

    private static void jsonString(String text, StringBuilder json) {
        json.append('"');
        for (char c : text.toCharArray()) {
            switch (c) {
                case '"' -> json.append("\\\"");
                case '\\' -> json.append("\\\\");
                case '\n' -> json.append("\\n");
                case '\r' -> json.append("\\r");
                case '\t' -> json.append("\\t");
                case '\b' -> json.append("\\b");
                case '\f' -> json.append("\\f");
                default -> json.append(c < 0x20 ? String.format("\\u%04x", (int) c) : String.valueOf(c));
            }
        }
        json.append('"');
    }
}
