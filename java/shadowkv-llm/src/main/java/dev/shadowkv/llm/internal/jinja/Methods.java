package dev.shadowkv.llm.internal.jinja;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Methods of Python's strings, lists and dictionaries that do not change their object. */
final class Methods {
    private Methods() {}

    static Object call(Object target, String name, List<Object> arguments, Map<String, Object> named) {
        return switch (target) {
            case String text -> ofString(text, name, arguments, named);
            case Map<?, ?> map -> ofMap(map, name, arguments);
            case List<?> list -> ofList(list, name, arguments);
            case Values.Undefined undefined -> throw new JinjaException(
                    undefined.what() + " is undefined, it has no method " + name);
            case null, default -> throw unknown(target, name);
        };
    }

    private static JinjaException unknown(Object target, String name) {
        return new JinjaException(Values.type(target) + " has no method " + name + " that is supported");
    }

    private static Object ofString(String text, String name, List<Object> arguments, Map<String, Object> named) {
        return switch (name) {
            case "strip" -> strip(text, arguments, true, true);
            case "lstrip" -> strip(text, arguments, true, false);
            case "rstrip" -> strip(text, arguments, false, true);
            case "startswith" -> affixes(arguments).stream().anyMatch(text::startsWith);
            case "endswith" -> affixes(arguments).stream().anyMatch(text::endsWith);
            case "upper" -> text.toUpperCase(Locale.ROOT);
            case "lower" -> text.toLowerCase(Locale.ROOT);
            case "capitalize" -> capitalize(text);
            case "title" -> title(text);
            case "replace" -> replace(
                    text,
                    Values.string(argument(arguments, 0, name)),
                    Values.string(argument(arguments, 1, name)),
                    arguments.size() > 2 ? Values.integer(arguments.get(2)) : -1);
            case "split" -> split(
                    text,
                    arguments.isEmpty() ? named.get("sep") : arguments.getFirst(),
                    arguments.size() > 1
                            ? Values.integer(arguments.get(1))
                            : named.containsKey("maxsplit") ? Values.integer(named.get("maxsplit")) : -1);
            case "rsplit" -> splitFromRight(
                    text,
                    Values.string(argument(arguments, 0, name)),
                    arguments.size() > 1 ? Values.integer(arguments.get(1)) : -1);
            case "splitlines" -> new ArrayList<Object>(text.lines().toList());
            case "find" -> (long) text.indexOf(Values.string(argument(arguments, 0, name)));
            case "rfind" -> (long) text.lastIndexOf(Values.string(argument(arguments, 0, name)));
            case "count" -> (long) count(text, Values.string(argument(arguments, 0, name)));
            case "join" -> String.join(
                    text,
                    Values.iterate(argument(arguments, 0, name)).stream().map(Values::string).toList());
            case "isdigit" -> !text.isEmpty() && text.codePoints().allMatch(Character::isDigit);
            case "isalpha" -> !text.isEmpty() && text.codePoints().allMatch(Character::isLetter);
            case "isspace" -> !text.isEmpty() && text.isBlank();
            case "isupper" -> isUpper(text);
            case "islower" -> isLower(text);
            default -> throw unknown(text, name);
        };
    }

    private static Object argument(List<Object> arguments, int index, String method) {
        if (index >= arguments.size()) {
            throw new JinjaException(method + " needs " + (index + 1) + " arguments");
        }
        return arguments.get(index);
    }

    private static List<String> affixes(List<Object> arguments) {
        Object affix = argument(arguments, 0, "startswith");
        return affix instanceof List<?> list
                ? list.stream().map(Values::string).toList()
                : List.of(Values.string(affix));
    }

    static String strip(String text, List<Object> arguments, boolean left, boolean right) {
        String set = arguments.isEmpty() || arguments.getFirst() == null ? null : Values.string(arguments.getFirst());
        int from = 0;
        int to = text.length();
        while (left && from < to && stripped(text.charAt(from), set)) {
            from++;
        }
        while (right && to > from && stripped(text.charAt(to - 1), set)) {
            to--;
        }
        return text.substring(from, to);
    }

    private static boolean stripped(char c, String set) {
        return set == null ? Character.isWhitespace(c) || c == '\u00a0' : set.indexOf(c) >= 0;
    }

    static String capitalize(String text) {
        return text.isEmpty()
                ? text
                : text.substring(0, 1).toUpperCase(Locale.ROOT) + text.substring(1).toLowerCase(Locale.ROOT);
    }

    static String title(String text) {
        StringBuilder title = new StringBuilder();
        boolean begins = true;
        for (char c : text.toCharArray()) {
            title.append(begins ? Character.toTitleCase(c) : Character.toLowerCase(c));
            begins = !Character.isLetter(c);
        }
        return title.toString();
    }

    static String replace(String text, String old, String by, int limit) {
        if (limit < 0) {
            return text.replace(old, by);
        }
        StringBuilder replaced = new StringBuilder();
        int from = 0;
        for (int i = 0; i < limit; i++) {
            int at = text.indexOf(old, from);
            if (at < 0) {
                break;
            }
            replaced.append(text, from, at).append(by);
            from = at + old.length();
        }
        return replaced.append(text.substring(from)).toString();
    }

    private static List<Object> split(String text, Object separator, int limit) {
        List<Object> parts = new ArrayList<>();
        if (separator == null) {
            String rest = text.strip();
            while (!rest.isEmpty()) {
                int end = 0;
                while (end < rest.length() && !Character.isWhitespace(rest.charAt(end))) {
                    end++;
                }
                boolean last = limit >= 0 && parts.size() == limit;
                parts.add(last ? rest : rest.substring(0, end));
                rest = last ? "" : rest.substring(end).stripLeading();
            }
            return parts;
        }
        String by = Values.string(separator);
        if (by.isEmpty()) {
            throw new JinjaException("split by an empty string");
        }
        int from = 0;
        for (int at = text.indexOf(by); at >= 0 && (limit < 0 || parts.size() < limit); at = text.indexOf(by, from)) {
            parts.add(text.substring(from, at));
            from = at + by.length();
        }
        parts.add(text.substring(from));
        return parts;
    }

    private static List<Object> splitFromRight(String text, String by, int limit) {
        List<Object> parts = new ArrayList<>();
        int end = text.length();
        while (limit < 0 || parts.size() < limit) {
            int at = end == 0 ? -1 : text.lastIndexOf(by, end - by.length());
            if (at < 0) {
                break;
            }
            parts.addFirst(text.substring(at + by.length(), end));
            end = at;
        }
        parts.addFirst(text.substring(0, end));
        return parts;
    }

    private static int count(String text, String part) {
        int count = 0;
        for (int at = text.indexOf(part); at >= 0 && !part.isEmpty(); at = text.indexOf(part, at + part.length())) {
            count++;
        }
        return count;
    }

    static boolean isUpper(String text) {
        return !text.equals(text.toLowerCase(Locale.ROOT)) && text.equals(text.toUpperCase(Locale.ROOT));
    }

    static boolean isLower(String text) {
        return !text.equals(text.toUpperCase(Locale.ROOT)) && text.equals(text.toLowerCase(Locale.ROOT));
    }

    private static Object ofMap(Map<?, ?> map, String name, List<Object> arguments) {
        return switch (name) {
            case "items" -> items(map);
            case "keys" -> new ArrayList<Object>(map.keySet());
            case "values" -> new ArrayList<Object>(map.values());
            case "get" -> {
                Object key = argument(arguments, 0, name);
                yield map.containsKey(key) ? map.get(key) : arguments.size() > 1 ? arguments.get(1) : null;
            }
            default -> throw unknown(map, name);
        };
    }

    static List<Object> items(Map<?, ?> map) {
        List<Object> items = new ArrayList<>();
        map.forEach((key, value) -> {
            List<Object> pair = new ArrayList<>();
            pair.add(key);
            pair.add(value);
            items.add(pair);
        });
        return items;
    }

    private static Object ofList(List<?> list, String name, List<Object> arguments) {
        Object value = argument(arguments, 0, name);
        return switch (name) {
            case "index" -> {
                for (int i = 0; i < list.size(); i++) {
                    if (Values.equal(list.get(i), value)) {
                        yield (long) i;
                    }
                }
                throw new JinjaException("the list has no such element");
            }
            case "count" -> list.stream().filter(item -> Values.equal(item, value)).count();
            default -> throw unknown(list, name);
        };
    }
}
