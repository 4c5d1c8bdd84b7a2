package dev.shadowkv.llm.internal.jinja;

import dev.shadowkv.llm.internal.jinja.Lexer.Kind;
import dev.shadowkv.llm.internal.jinja.Lexer.Token;
import dev.shadowkv.llm.internal.jinja.Node.Arguments;
import dev.shadowkv.llm.internal.jinja.Node.Branch;
import dev.shadowkv.llm.internal.jinja.Node.Expression;
import dev.shadowkv.llm.internal.jinja.Node.Parameter;
import dev.shadowkv.llm.internal.jinja.Node.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Recursive descent over the tokens; the levels of precedence follow the order of the methods. */
final class Parser {
    private static final Set<String> COMPARISONS = Set.of("==", "!=", "<", ">", "<=", ">=");

    private final List<Token> tokens;
    private int position;

    private Parser(List<Token> tokens) {
        this.tokens = tokens;
    }

    static List<Statement> parse(String template) {
        Parser parser = new Parser(Lexer.tokenize(template));
        List<Statement> body = parser.body(Set.of());
        if (parser.peek().kind() != Kind.END) {
            throw parser.error("unexpected " + parser.peek().text());
        }
        return body;
    }

    /** Statements up to a block whose name is among {@code ends}; stands after that name then. */
    private List<Statement> body(Set<String> ends) {
        List<Statement> statements = new ArrayList<>();
        while (true) {
            Token token = next();
            switch (token.kind()) {
                case END -> {
                    if (!ends.isEmpty()) {
                        throw error("expected " + ends + " before the end of the template");
                    }
                    position--;
                    return statements;
                }
                case TEXT -> statements.add(new Node.Text(token.text()));
                case EXPRESSION_BEGIN -> {
                    statements.add(new Node.Output(tuple()));
                    expect(Kind.EXPRESSION_END, "}}");
                }
                case BLOCK_BEGIN -> {
                    String name = name();
                    if (ends.contains(name)) {
                        position--;
                        return statements;
                    }
                    statements.add(statement(name));
                }
                default -> throw error("unexpected " + token.text());
            }
        }
    }

    private Statement statement(String name) {
        return switch (name) {
            case "if" -> ifStatement();
            case "for" -> forStatement();
            case "set" -> setStatement();
            case "macro" -> macro();
            case "break", "continue" -> {
                endBlock();
                yield new Node.Jump(name.equals("break"));
            }
            case "generation" -> {
                endBlock();
                yield new Node.Group(bodyUpTo("endgeneration"));
            }
            default -> throw error("the tag " + name + " is not supported");
        };
    }

    private List<Statement> bodyUpTo(String end) {
        List<Statement> body = body(Set.of(end));
        name();
        endBlock();
        return body;
    }

    private Statement ifStatement() {
        List<Branch> branches = new ArrayList<>();
        List<Statement> otherwise = List.of();
        Expression condition = tuple();
        endBlock();
        while (true) {
            List<Statement> body = body(Set.of("elif", "else", "endif"));
            branches.add(new Branch(condition, body));
            switch (name()) {
                case "elif" -> {
                    condition = tuple();
                    endBlock();
                }
                case "else" -> {
                    endBlock();
                    otherwise = bodyUpTo("endif");
                    return new Node.If(branches, otherwise);
                }
                default -> {
                    endBlock();
                    return new Node.If(branches, otherwise);
                }
            }
        }
    }

    private Statement forStatement() {
        List<String> targets = targets();
        if (!acceptName("in")) {
            throw error("for without in");
        }
        Expression items = or();
        Expression condition = acceptName("if") ? expression() : null;
        if (acceptName("recursive")) {
            throw error("recursive loops are not supported");
        }
        endBlock();
        List<Statement> body = body(Set.of("else", "endfor"));
        List<Statement> otherwise = List.of();
        if (name().equals("else")) {
            endBlock();
            otherwise = bodyUpTo("endfor");
        } else {
            endBlock();
        }
        return new Node.For(targets, items, condition, body, otherwise);
    }

    private List<String> targets() {
        List<String> targets = new ArrayList<>();
        boolean parenthesis = accept("(");
        do {
            targets.add(name());
        } while (accept(","));
        if (parenthesis) {
            expect(Kind.OPERATOR, ")");
        }
        return targets;
    }

    private Statement setStatement() {
        List<String> targets = targets();
        String attribute = accept(".") ? name() : null;
        if (accept("=")) {
            Expression value = tuple();
            endBlock();
            return new Node.Set(targets, attribute, value);
        }
        if (targets.size() > 1 || attribute != null) {
            throw error("set needs a value");
        }
        endBlock();
        return new Node.SetBlock(targets.getFirst(), bodyUpTo("endset"));
    }

    private Statement macro() {
        String name = name();
        expect(Kind.OPERATOR, "(");
        List<Parameter> parameters = new ArrayList<>();
        while (!accept(")")) {
            String parameter = name();
            parameters.add(new Parameter(parameter, accept("=") ? expression() : null));
            if (!accept(",")) {
                expect(Kind.OPERATOR, ")");
                break;
            }
        }
        endBlock();
        return new Node.Macro(name, parameters, bodyUpTo("endmacro"));
    }

    /** An expression, or several with commas between, which make a list. */
    private Expression tuple() {
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

    private Expression expression() {
        Expression value = or();
        while (acceptName("if")) {
            Expression condition = or();
            Expression otherwise = acceptName("else") ? expression() : null;
            value = new Node.Choice(condition, value, otherwise);
        }
        return value;
    }

    private Expression or() {
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

    private Token peek() {
        return tokens.get(position);
    }

    private Token next() {
        return tokens.get(position++);
    }

    private String name() {
        Token token = next();
        if (token.kind() != Kind.NAME) {
            throw error("a name is expected instead of " + token.text());
        }
        return token.text();
    }

    private boolean accept(String operator) {
        return advanceIf(peek().is(Kind.OPERATOR, operator));
    }

    private boolean acceptName(String name) {
        return advanceIf(peek().is(Kind.NAME, name));
    }

    private boolean advanceIf(boolean matches) {
        position += matches ? 1 : 0;
        return matches;
    }

    private void expect(Kind kind, String text) {
        if (!next().is(kind, text)) {
            position--;
            throw error("expected " + text + " instead of " + peek().text());
        }
    }

    private void endBlock() {
        expect(Kind.BLOCK_END, "%}");
    }

    private JinjaException error(String reason) {
        int at = Math.min(position, tokens.size() - 1);
        return new JinjaException("line " + tokens.get(at).line() + ": " + reason);
    }
}
