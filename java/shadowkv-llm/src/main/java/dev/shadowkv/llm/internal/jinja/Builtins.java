package dev.shadowkv.llm.internal.jinja;

import dev.shadowkv.llm.internal.jinja.Values.Function;
import dev.shadowkv.llm.internal.jinja.Values.Namespace;
import dev.shadowkv.llm.internal.jinja.Values.Undefined;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Functions, filters and tests that every template has. */
final class Builtins {
    static final Map<String, Object> FUNCTIONS = Map.of(
            "range", (Function) (positional, named) -> range(positional),
            "namespace", (Function) (positional, named) -> new Namespace(fields(positional, named)),
            "dict", (Function) (positional, named) -> fields(positional, named),
            "raise_exception", (Function) (positional, named) -> {
                throw new JinjaException(
                        "the template raised: " + (positional.isEmpty() ? "" : Values.print(positional.getFirst())));
            });

    private static final int MAXIMUM_RANGE = 1_000_000;

    private Builtins() {}

    private static Map<String, Object> fields(List<Object> positional, Map<String, Object> named) {
        Map<String, Object> fields = new LinkedHashMap<>();
        if (!positional.isEmpty() && positional.getFirst() instanceof Map<?, ?> map) {
            map.forEach((key, value) -> fields.put(Values.string(key), value));
        }
        fields.putAll(named);
        return fields;
    }

    private static List<Object> range(List<Object> arguments) {
        int first = arguments.size() > 1 ? Values.integer(arguments.get(0)) : 0;
        int end = Values.integer(arguments.get(arguments.size() > 1 ? 1 : 0));
        int step = arguments.size() > 2 ? Values.integer(arguments.get(2)) : 1;
        if (step == 0 || Math.abs(((long) end - first) / step) > MAXIMUM_RANGE) {
            throw new JinjaException("range(" + first + ", " + end + ", " + step + ") is not possible");
        }
        List<Object> numbers = new ArrayList<>();
        for (long i = first; step > 0 ? i < end : i > end; i += step) {
            numbers.add(i);
        }
        return numbers;
    }

    static boolean test(String name, Object value, List<Object> arguments) {
        return switch (name) {
            case "defined" -> !(value instanceof Undefined);
            case "undefined" -> value instanceof Undefined;
            case "none" -> value == null;
            case "string" -> value instanceof String;
            case "mapping" -> value instanceof Map<?, ?>;
            case "sequence", "iterable" -> isSequence(value);
            case "number" -> Values.isNumber(value);
            case "integer" -> value instanceof Long || value instanceof Integer;
            case "float" -> value instanceof Double;
            case "boolean" -> value instanceof Boolean;
            case "true" -> Boolean.TRUE.equals(value);
            case "false" -> Boolean.FALSE.equals(value);
            case "callable" -> value instanceof Function;
            case "odd" -> Math.floorMod(Values.integer(value), 2) == 1;
            case "even" -> Math.floorMod(Values.integer(value), 2) == 0;
            case "divisibleby" -> Math.floorMod(Values.integer(value), Values.integer(first(name, arguments))) == 0;
            case "equalto", "eq", "sameas" -> Values.equal(value, first(name, arguments));
            case "ne" -> !Values.equal(value, first(name, arguments));
            case "lt", "lessthan" -> Values.compare(value, first(name, arguments)) < 0;
            case "gt", "greaterthan" -> Values.compare(value, first(name, arguments)) > 0;
            case "le" -> Values.compare(value, first(name, arguments)) <= 0;
            case "ge" -> Values.compare(value, first(name, arguments)) >= 0;
            case "in" -> Operators.contains(first(name, arguments), value);
            case "upper" -> Methods.isUpper(Values.string(value));
            case "lower" -> Methods.isLower(Values.string(value));
            default -> throw new JinjaException("the test " + name + " is not supported");
        };
    }

    private static boolean isSequence(Object value) {
        return value instanceof List<?> || value instanceof Map<?, ?> || value instanceof String
                || value instanceof Undefined;
    }

    private static Object first(String name, List<Object> arguments) {
        if (arguments.isEmpty()) {
            throw new JinjaException(name + " needs an argument");
        }
        return arguments.getFirst();
    }

    private static Object argument(List<Object> positional, Map<String, Object> named, int index, String name, Object absent) {
        return positional.size() > index ? positional.get(index) : named.getOrDefault(name, absent);
    }

    static Object filter(String name, Object value, List<Object> positional, Map<String, Object> named) {
        return switch (name) {
            case "trim" -> Methods.strip(Values.print(value), positional, true, true);
            case "length", "count" -> (long) Values.length(value);
            case "string" -> Values.print(value);
            case "upper" -> Values.print(value).toUpperCase(Locale.ROOT);
            case "lower" -> Values.print(value).toLowerCase(Locale.ROOT);
            case "capitalize" -> Methods.capitalize(Values.print(value));
            case "title" -> Methods.title(Values.print(value));
            case "safe" -> value;
            case "tojson" -> {
                Object indent = argument(positional, named, 0, "indent", null);
                yield Values.json(value, indent == null ? -1 : Values.integer(indent));
            }
            case "default", "d" -> {
                boolean alsoFalse = Values.truth(argument(positional, named, 1, "boolean", false));
                boolean missing = value instanceof Undefined || alsoFalse && !Values.truth(value);
                yield missing ? argument(positional, named, 0, "default_value", "") : value;
            }
            case "replace" -> Methods.replace(
                    Values.print(value),
                    Values.string(argument(positional, named, 0, "old", null)),
                    Values.string(argument(positional, named, 1, "new", null)),
                    -1);
            case "int" -> toInteger(value, argument(positional, named, 0, "default", 0L));
            case "float" -> Values.isNumber(value)
                    ? Values.number(value).doubleValue()
                    : Double.parseDouble(Values.string(value));
            case "abs" -> Values.number(value) instanceof Long whole
                    ? (Object) Math.abs(whole)
                    : (Object) Math.abs(Values.number(value).doubleValue());
            case "indent" -> indent(Values.print(value), argument(positional, named, 0, "width", 4L),
                    Values.truth(argument(positional, named, 1, "first", false)));
            case "items" -> value instanceof Map<?, ?> map ? Methods.items(map) : List.of();
            case "dictsort" -> sorted(Methods.items((Map<?, ?>) value), 0L, false);
            default -> sequenceFilter(name, value, positional, named);
        };
    }

    private static Object sequenceFilter(String name, Object value, List<Object> positional, Map<String, Object> named) {
        List<Object> items = Values.iterate(value);
        return switch (name) {
            case "list" -> items;
            case "first" -> items.isEmpty() ? new Undefined("the first element") : items.getFirst();
            case "last" -> items.isEmpty() ? new Undefined("the last element") : items.getLast();
            case "join" -> {
                Object attribute = argument(positional, named, 1, "attribute", null);
                String separator = Values.print(argument(positional, named, 0, "d", ""));
                yield String.join(
                        separator,
                        items.stream().map(item -> Values.print(attribute == null ? item : pick(item, attribute))).toList());
            }
            case "reverse" -> {
                Collections.reverse(items);
                yield value instanceof String ? filter("join", items, List.of(), Map.of()) : items;
            }
            case "sort" -> sorted(items, named.get("attribute"), Values.truth(argument(positional, named, 0, "reverse", false)));
            case "unique" -> {
                List<Object> unique = new ArrayList<>();
                items.stream().filter(item -> !Operators.contains(unique, item)).forEach(unique::add);
                yield unique;
            }
            case "sum" -> items.stream().reduce(0L, (a, b) -> Operators.binary("+", a, b));
            case "min" -> items.stream().min(Values::compare).orElse(new Undefined("the minimum"));
            case "max" -> items.stream().max(Values::compare).orElse(new Undefined("the maximum"));
            case "map" -> map(items, positional, named);
            case "select", "reject" -> {
                List<Object> rest = rest(positional, 1);
                yield items.stream()
                        .filter(item -> name.equals("select")
                                == (positional.isEmpty()
                                        ? Values.truth(item)
                                        : test(Values.string(positional.getFirst()), item, rest)))
                        .toList();
            }
            case "selectattr", "rejectattr" -> {
                Object attribute = first(name, positional);
                yield items.stream()
                        .filter(item -> name.equals("selectattr")
                                == (positional.size() == 1
                                        ? Values.truth(pick(item, attribute))
                                        : test(Values.string(positional.get(1)), pick(item, attribute), rest(positional, 2))))
                        .toList();
            }
            default -> throw new JinjaException("the filter " + name + " is not supported");
        };
    }

    private static List<Object> rest(List<Object> list, int from) {
        return list.subList(Math.min(from, list.size()), list.size());
    }

    private static List<Object> map(List<Object> items, List<Object> positional, Map<String, Object> named) {
        List<Object> mapped = new ArrayList<>();
        Map<String, Object> others = new HashMap<>(named);
        Object attribute = others.remove("attribute");
        for (Object item : items) {
            if (attribute == null) {
                mapped.add(filter(Values.string(first("map", positional)), item, rest(positional, 1), others));
            } else {
                Object picked = pick(item, attribute);
                mapped.add(picked instanceof Undefined && others.containsKey("default") ? others.get("default") : picked);
            }
        }
        return mapped;
    }

    private static Object pick(Object item, Object attribute) {
        Object value = item;
        for (String name : Values.print(attribute).split("\\.")) {
            value = switch (value) {
                case Map<?, ?> map when map.containsKey(name) -> map.get(name);
                case List<?> list when attribute instanceof Long index -> list.get(index.intValue());
                case null, default -> new Undefined(name);
            };
        }
        return value;
    }

    private static List<Object> sorted(List<Object> items, Object attribute, boolean reverse) {
        items.sort((a, b) -> {
            Object left = attribute == null ? a : pick(a, attribute);
            Object right = attribute == null ? b : pick(b, attribute);
            boolean text = left instanceof String && right instanceof String;
            // The filter ignores case unless told otherwise.
            int order = text ? ((String) left).compareToIgnoreCase((String) right) : Values.compare(left, right);
            return reverse ? -order : order;
        });
        return items;
    }

    private static Object toInteger(Object value, Object absent) {
        if (value instanceof String text) {
            try {
                return (long) Double.parseDouble(text.strip());
            } catch (NumberFormatException e) {
                return absent;
            }
        }
        return Values.isNumber(value) ? (Object) Values.number(value).longValue() : absent;
    }

    private static String indent(String text, Object width, boolean first) {
        String blanks = width instanceof String given ? given : " ".repeat(Values.integer(width));
        String[] lines = text.split("\n", -1);
        StringBuilder indented = new StringBuilder(first ? blanks : "").append(lines[0]);
        for (int i = 1; i < lines.length; i++) {
            indented.append('\n').append(lines[i].isEmpty() ? "" : blanks).append(lines[i]);
        }
        return indented.toString();
    }
}
