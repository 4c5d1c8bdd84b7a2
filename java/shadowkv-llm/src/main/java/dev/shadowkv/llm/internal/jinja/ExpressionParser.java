package dev.shadowkv.llm.internal.jinja;

import dev.shadowkv.llm.internal.jinja.Lexer.Kind;
import dev.shadowkv.llm.internal.jinja.Lexer.Token;
import dev.shadowkv.llm.internal.jinja.Node.Arguments;
import dev.shadowkv.llm.internal.jinja.Node.Expression;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Recursive descent over the tokens of expressions; the levels of precedence follow the order of the methods. */
class ExpressionParser {
    private static final Set<String> COMPARISONS = Set.of("==", "!=", "<", ">", "<=", ">=");

    private final List<Token> tokens;
    private int position;

    ExpressionParser(List<Token> tokens) {
        this.tokens = tokens;
    }

    /** An expression, or several with commas between, which make a list. */
    final Expression tuple() {
        Expression first = expression();
        if (!peek().is(Kind.OPERATOR, ",")) {
            return first;
        }
        List<Expression> items = new ArrayList<>(List.of(first));
        while (accept(",")) {
            if (peek().kind() == Kind.EXPRESSION_END || peek().kind() == Kind.BLOCK_END || peek().is(Kind.OPERATOR, ")")) {
                break;
            }
            items.add(expression());
        }
        return new Node.ListOf(items);
    }

    final Expression expression() {
        Expression value = or();
        while (acceptName("if")) {
            Expression condition = or();
            Expression otherwise = acceptName("else") ? expression() : null;
            value = new Node.Choice(condition, value, otherwise);
        }
        return value;
    }

    final Expression or() {
        Expression left = and();
        while (acceptName("or")) {
            left = new Node.Binary("or", left, and());
        }
        return left;
    }

    private Expression and() {
        Expression left = not();
        while (acceptName("and")) {
            left = new Node.Binary("and", left, not());
        }
        return left;
    }

    private Expression not() {
        return acceptName("not") ? new Node.Unary("not", not()) : comparison();
    }

    private Expression comparison() {
        Expression first = sum();
        List<String> operators = new ArrayList<>();
        List<Expression> others = new ArrayList<>();
        while (true) {
            if (peek().kind() == Kind.OPERATOR && COMPARISONS.contains(peek().text())) {
                operators.add(next().text());
            } else if (peek().is(Kind.NAME, "in")) {
                operators.add(next().text());
            } else if (peek().is(Kind.NAME, "not") && tokens.get(position + 1).is(Kind.NAME, "in")) {
                position += 2;
                operators.add("not in");
            } else {
                return operators.isEmpty() ? first : new Node.Comparison(first, operators, others);
            }
            others.add(sum());
        }
    }

    private Expression sum() {
        Expression left = concatenation();
        while (peek().is(Kind.OPERATOR, "+") || peek().is(Kind.OPERATOR, "-")) {
            left = new Node.Binary(next().text(), left, concatenation());
        }
        return left;
    }

    private Expression concatenation() {
        Expression left = product();
        while (accept("~")) {
            left = new Node.Binary("~", left, product());
        }
        return left;
    }

    private Expression product() {
        Expression left = power();
        while (peek().kind() == Kind.OPERATOR && Set.of("*", "/", "//", "%").contains(peek().text())) {
            left = new Node.Binary(next().text(), left, power());
        }
        return left;
    }

    private Expression power() {
        Expression left = unary(true);
        while (accept("**")) {
            left = new Node.Binary("**", left, unary(true));
        }
        return left;
    }

    private Expression unary(boolean filters) {
        Expression value;
        if (peek().is(Kind.OPERATOR, "-") || peek().is(Kind.OPERATOR, "+")) {
            value = new Node.Unary(next().text(), unary(false));
        } else {
            value = postfix(primary());
        }
        return filters ? filtersAndTests(value) : value;
    }

    private Expression primary() {
        Token token = next();
        return switch (token.kind()) {
            case NAME -> switch (token.text()) {
                case "true", "True" -> new Node.Literal(true);
                case "false", "False" -> new Node.Literal(false);
                case "none", "None" -> new Node.Literal(null);
                default -> new Node.Variable(token.text());
            };
            case STRING -> {
                StringBuilder text = new StringBuilder(token.text());
                while (peek().kind() == Kind.STRING) {
                    text.append(next().text());
                }
                yield new Node.Literal(text.toString());
            }
            case INTEGER -> new Node.Literal(Long.parseLong(token.text().replace("_", "")));
            case FLOAT -> new Node.Literal(Double.parseDouble(token.text().replace("_", "")));
            case OPERATOR -> switch (token.text()) {
                case "(" -> {
                    Expression value = accept(")") ? new Node.ListOf(List.of()) : tuple();
                    if (!(value instanceof Node.ListOf list) || !list.items().isEmpty()) {
                        expect(Kind.OPERATOR, ")");
                    }
                    yield value;
                }
                case "[" -> new Node.ListOf(expressionsUpTo("]"));
                case "{" -> dict();
                default -> throw error("unexpected " + token.text());
            };
            default -> throw error("unexpected " + token.text());
        };
    }

    private List<Expression> expressionsUpTo(String close) {
        List<Expression> items = new ArrayList<>();
        while (!accept(close)) {
            items.add(expression());
            if (!accept(",")) {
                expect(Kind.OPERATOR, close);
                break;
            }
        }
        return items;
    }

    private Expression dict() {
        List<Map.Entry<Expression, Expression>> entries = new ArrayList<>();
        while (!accept("}")) {
            Expression key = expression();
            expect(Kind.OPERATOR, ":");
            entries.add(Map.entry(key, expression()));
            if (!accept(",")) {
                expect(Kind.OPERATOR, "}");
                break;
            }
        }
        return new Node.DictOf(entries);
    }

    private Expression postfix(Expression target) {
        Expression value = target;
        while (true) {
            if (accept(".")) {
                Token token = next();
                value = switch (token.kind()) {
                    case NAME -> new Node.Attribute(value, token.text());
                    case INTEGER -> new Node.Item(value, new Node.Literal(Long.parseLong(token.text())));
                    default -> throw error("a name is expected after the point");
                };
            } else if (accept("[")) {
                value = subscript(value);
            } else if (accept("(")) {
                value = new Node.Call(value, arguments());
            } else {
                return value;
            }
        }
    }

    private Expression subscript(Expression target) {
        Expression from = peek().is(Kind.OPERATOR, ":") ? null : expression();
        if (accept("]")) {
            return new Node.Item(target, from);
        }
        expect(Kind.OPERATOR, ":");
        Expression to = peek().is(Kind.OPERATOR, ":") || peek().is(Kind.OPERATOR, "]") ? null : expression();
        Expression step = null;
        if (accept(":") && !peek().is(Kind.OPERATOR, "]")) {
            step = expression();
        }
        expect(Kind.OPERATOR, "]");
        return new Node.Slice(target, from, to, step);
    }

    private Arguments arguments() {
        List<Expression> positional = new ArrayList<>();
        Map<String, Expression> named = new LinkedHashMap<>();
        while (!accept(")")) {
            if (peek().kind() == Kind.NAME && tokens.get(position + 1).is(Kind.OPERATOR, "=")) {
                String name = name();
                position++;
                named.put(name, expression());
            } else {
                positional.add(expression());
            }
            if (!accept(",")) {
                expect(Kind.OPERATOR, ")");
                break;
            }
        }
        return new Arguments(positional, named);
    }

    private Expression filtersAndTests(Expression target) {
        Expression value = target;
        while (true) {
            if (accept("|")) {
                String name = name();
                value = new Node.Filter(
                        value, name, accept("(") ? arguments() : new Arguments(List.of(), Map.of()));
            } else if (acceptName("is")) {
                boolean negated = acceptName("not");
                String name = name();
                value = new Node.Test(value, name, testArguments(), negated);
            } else if (peek().is(Kind.OPERATOR, "(")) {
                position++;
                value = new Node.Call(value, arguments());
            } else {
                return value;
            }
        }
    }

    /** A test takes its arguments in parentheses, or one without: {@code x is divisibleby 3}. */
    private List<Expression> testArguments() {
        if (accept("(")) {
            return arguments().positional();
        }
        Token token = peek();
        boolean argument = switch (token.kind()) {
            case STRING, INTEGER, FLOAT -> true;
            case OPERATOR -> token.text().equals("[") || token.text().equals("{");
            case NAME -> !Set.of("and", "or", "not", "else", "if", "is", "in").contains(token.text());
            default -> false;
        };
        return argument ? List.of(postfix(primary())) : List.of();
    }

    final Token peek() {
        return tokens.get(position);
    }

    final Token next() {
        return tokens.get(position++);
    }

    /** Steps back by one token. */
    final void back() {
        position--;
    }

    final String name() {
        Token token = next();
        if (token.kind() != Kind.NAME) {
            throw error("a name is expected instead of " + token.text());
        }
        return token.text();
    }

    final boolean accept(String operator) {
        return advanceIf(peek().is(Kind.OPERATOR, operator));
    }

    final boolean acceptName(String name) {
        return advanceIf(peek().is(Kind.NAME, name));
    }

    private boolean advanceIf(boolean matches) {
        position += matches ? 1 : 0;
        return matches;
    }

    final void expect(Kind kind, String text) {
        if (!next().is(kind, text)) {
            position--;
            throw error("expected " + text + " instead of " + peek().text());
        }
    }

    final void endBlock() {
        expect(Kind.BLOCK_END, "%}");
    }

    final JinjaException error(String reason) {
        int at = Math.min(position, tokens.size() - 1);
        return new JinjaException("line " + tokens.get(at).line() + ": " + reason);
    }
}
