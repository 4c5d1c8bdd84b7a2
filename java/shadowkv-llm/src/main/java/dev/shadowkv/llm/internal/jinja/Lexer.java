package dev.shadowkv.llm.internal.jinja;

import java.util.ArrayList;
import java.util.List;

/**
 * Cuts a template into text and the tokens of its tags, with the white-space rules that chat templates are written
 * for: {@code trim_blocks} (a newline after a block goes), {@code lstrip_blocks} (blanks before a block that begins a
 * line go), {@code -} and {@code +} at a tag's ends, and one newline at the template's end goes.
 */
final class Lexer {
    enum Kind {
        TEXT,
        BLOCK_BEGIN,
        BLOCK_END,
        EXPRESSION_BEGIN,
        EXPRESSION_END,
        NAME,
        STRING,
        INTEGER,
        FLOAT,
        OPERATOR,
        END
    }

    record Token(Kind kind, String text, int line) {
        boolean is(Kind expected, String value) {
            return kind == expected && text.equals(value);
        }
    }

    private static final String[] OPERATORS = {
        "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")", "[", "]", "{", "}",
        ".", ",", ":", "|"
    };

    private final String source;
    private final List<Token> tokens = new ArrayList<>();
    private int position;
    private int line = 1;
    /** Set by a tag that ends in {@code -}: the blanks that follow go. */
    private boolean stripNext;
    /** Set by a block or comment without a sign at its end: one newline that follows goes. */
    private boolean trimNewline;

    private Lexer(String source) {
        this.source = source;
    }

    static List<Token> tokenize(String template) {
        String normalized = template.replace("\r\n", "\n").replace('\r', '\n');
        Lexer lexer = new Lexer(
                normalized.endsWith("\n") ? normalized.substring(0, normalized.length() - 1) : normalized);
        lexer.run();
        return lexer.tokens;
    }

    private void run() {
        while (position < source.length()) {
            int tag = nextTag();
            text(tag);
            if (position == source.length()) {
                break;
            }
            char kind = source.charAt(position + 1);
            advance(2);
            if (position < source.length() && isSign(source.charAt(position))) {
                advance(1);
            }
            switch (kind) {
                case '#' -> comment();
                case '%' -> {
                    if (!raw()) {
                        add(Kind.BLOCK_BEGIN, "{%");
                        inside("%}", Kind.BLOCK_END);
                    }
                }
                default -> {
                    add(Kind.EXPRESSION_BEGIN, "{{");
                    inside("}}", Kind.EXPRESSION_END);
                }
            }
        }
        add(Kind.END, "");
    }

    private int nextTag() {
        for (int i = position; i + 1 < source.length(); i++) {
            char next = source.charAt(i + 1);
            if (source.charAt(i) == '{' && (next == '{' || next == '%' || next == '#')) {
                return i;
            }
        }
        return source.length();
    }

    private void text(int end) {
        String text = source.substring(position, end);
        if (stripNext) {
            text = text.stripLeading();
        } else if (trimNewline && text.startsWith("\n")) {
            text = text.substring(1);
        }
        if (end < source.length()) {
            char sign = end + 2 < source.length() ? source.charAt(end + 2) : ' ';
            if (sign == '-') {
                text = text.stripTrailing();
            } else if (sign != '+' && source.charAt(end + 1) != '{') {
                text = withoutIndentation(text, end);
            }
        }
        advance(end - position);
        stripNext = false;
        trimNewline = false;
        if (!text.isEmpty()) {
            add(Kind.TEXT, text);
        }
    }

    /** Drops blanks before a block when there is nothing else before it on its line. */
    private String withoutIndentation(String text, int tag) {
        int start = tag;
        while (start > 0 && (source.charAt(start - 1) == ' ' || source.charAt(start - 1) == '\t')) {
            start--;
        }
        boolean beginsLine = start == 0 || source.charAt(start - 1) == '\n';
        return beginsLine ? text.substring(0, Math.max(0, text.length() - (tag - start))) : text;
    }

    private void comment() {
        int end = source.indexOf("#}", position);
        if (end < 0) {
            throw error("a comment is not closed");
        }
        advance(end - position);
        endTag(end > 0 ? source.charAt(end - 1) : ' ', true);
        advance(2);
    }

    private void endTag(char sign, boolean block) {
        stripNext = sign == '-';
        trimNewline = block && sign != '-' && sign != '+';
    }

    private boolean raw() {
        int at = position;
        while (at < source.length() && Character.isWhitespace(source.charAt(at))) {
            at++;
        }
        if (!source.startsWith("raw", at)) {
            return false;
        }
        int open = source.indexOf("%}", at);
        if (open < 0 || !source.substring(at + 3, open).replace("-", "").isBlank()) {
            return false;
        }
        java.util.regex.Matcher end = java.util.regex.Pattern.compile("\\{%([-+]?)\\s*endraw\\s*([-+]?)%\\}").matcher(source);
        if (!end.find(open)) {
            throw error("raw is not closed by endraw");
        }
        String text = source.substring(open + 2, end.start());
        text = source.charAt(open - 1) == '-' ? text.stripLeading() : text.startsWith("\n") ? text.substring(1) : text;
        text = end.group(1).equals("-") ? text.stripTrailing() : text;
        advance(end.end() - position);
        if (!text.isEmpty()) {
            add(Kind.TEXT, text);
        }
        endTag(end.group(2).isEmpty() ? ' ' : end.group(2).charAt(0), true);
        return true;
    }

    private void inside(String close, Kind end) {
        int depth = 0;
        while (true) {
            while (position < source.length() && Character.isWhitespace(source.charAt(position))) {
                advance(1);
            }
            if (position >= source.length()) {
                throw error("a tag is not closed by " + close);
            }
            if (depth == 0) {
                boolean signed = isSign(source.charAt(position)) && source.startsWith(close, position + 1);
                if (signed || source.startsWith(close, position)) {
                    endTag(source.charAt(position), end == Kind.BLOCK_END);
                    advance(signed ? 3 : 2);
                    add(end, close);
                    return;
                }
            }
            char c = source.charAt(position);
            depth += c == '{' || c == '(' || c == '[' ? 1 : c == '}' || c == ')' || c == ']' ? -1 : 0;
            token(c);
        }
    }

    private void token(char c) {
        if (c == '"' || c == '\'') {
            string(c);
        } else if (Character.isDigit(c)) {
            number();
        } else if (Character.isJavaIdentifierStart(c) && c != '$') {
            int end = position;
            while (end < source.length() && Character.isJavaIdentifierPart(source.charAt(end))) {
                end++;
            }
            addAndAdvance(Kind.NAME, source.substring(position, end));
        } else {
            for (String operator : OPERATORS) {
                if (source.startsWith(operator, position)) {
                    addAndAdvance(Kind.OPERATOR, operator);
                    return;
                }
            }
            throw error("unexpected character " + c);
        }
    }

    private void number() {
        int end = position;
        boolean fraction = false;
        while (end < source.length()) {
            char c = source.charAt(end);
            boolean point = c == '.' && !fraction && end + 1 < source.length() && Character.isDigit(source.charAt(end + 1));
            fraction |= point;
            if (!Character.isDigit(c) && c != '_' && !point) {
                break;
            }
            end++;
        }
        addAndAdvance(fraction ? Kind.FLOAT : Kind.INTEGER, source.substring(position, end));
    }

    private void string(char quote) {
        StringBuilder text = new StringBuilder();
        int at = position + 1;
        while (true) {
            if (at >= source.length()) {
                throw error("a string is not closed");
            }
            char c = source.charAt(at++);
            if (c == quote) {
                break;
            }
            if (c != '\\' || at >= source.length()) {
                text.append(c);
                continue;
            }
            char escape = source.charAt(at++);
            switch (escape) {
                case 'n' -> text.append('\n');
                case 't' -> text.append('\t');
                case 'r' -> text.append('\r');
                case 'f' -> text.append('\f');
                case 'b' -> text.append('\b');
                case '0' -> text.append('\0');
                case '\\', '\'', '"' -> text.append(escape);
                case '\n' -> {}
                case 'x' -> at = codePoint(text, at, 2);
                case 'u' -> at = codePoint(text, at, 4);
                case 'U' -> at = codePoint(text, at, 8);
                default -> text.append('\\').append(escape);
            }
        }
        add(Kind.STRING, text.toString());
        advance(at - position);
    }

    private int codePoint(StringBuilder text, int at, int digits) {
        try {
            text.appendCodePoint(Integer.parseInt(source.substring(at, at + digits), 16));
            return at + digits;
        } catch (IllegalArgumentException | IndexOutOfBoundsException e) {
            throw error("a wrong escape in a string");
        }
    }

    private static boolean isSign(char c) {
        return c == '-' || c == '+';
    }

    private void add(Kind kind, String text) {
        tokens.add(new Token(kind, text, line));
    }

    private void addAndAdvance(Kind kind, String text) {
        add(kind, text);
        advance(text.length());
    }

    private void advance(int count) {
        for (int i = 0; i < count; i++) {
            if (source.charAt(position++) == '\n') {
                line++;
            }
        }
    }

    private JinjaException error(String reason) {
        return new JinjaException("line " + line + ": " + reason);
    }
}
