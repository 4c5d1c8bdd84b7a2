package dev.shadowkv.llm.internal.jinja;

import dev.shadowkv.llm.internal.jinja.Lexer.Kind;
import dev.shadowkv.llm.internal.jinja.Lexer.Token;
import dev.shadowkv.llm.internal.jinja.Node.Branch;
import dev.shadowkv.llm.internal.jinja.Node.Expression;
import dev.shadowkv.llm.internal.jinja.Node.Parameter;
import dev.shadowkv.llm.internal.jinja.Node.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** Recursive descent over the statements of a template. */
final class Parser extends ExpressionParser {
    private Parser(List<Token> tokens) {
        super(tokens);
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
                    back();
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
                        back();
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
}
