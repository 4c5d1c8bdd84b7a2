package dev.shadowkv.llm.internal.jinja;

import java.util.List;
import java.util.Map;

/** The syntax tree of a template: statements write output, expressions have a value. */
sealed interface Node {
    /** Writes something. */
    sealed interface Statement extends Node {}

    record Text(String text) implements Statement {}

    record Output(Expression value) implements Statement {}

    record If(List<Branch> branches, List<Statement> otherwise) implements Statement {}

    record Branch(Expression condition, List<Statement> body) {}

    /** {@code condition} is null where the loop has none. */
    record For(
            List<String> targets,
            Expression items,
            Expression condition,
            List<Statement> body,
            List<Statement> otherwise)
            implements Statement {}

    /** {@code attribute} is null for a plain variable; otherwise the target is a field of a namespace. */
    record Set(List<String> targets, String attribute, Expression value) implements Statement {}

    record SetBlock(String target, List<Statement> body) implements Statement {}

    record Macro(String name, List<Parameter> parameters, List<Statement> body) implements Statement {}

    /** {@code value} is null where there is no default. */
    record Parameter(String name, Expression value) {}

    record Jump(boolean leave) implements Statement {}

    /** A block that only groups its body. */
    record Group(List<Statement> body) implements Statement {}

    /** Has a value. */
    sealed interface Expression extends Node {}

    record Literal(Object value) implements Expression {}

    record Variable(String name) implements Expression {}

    record ListOf(List<Expression> items) implements Expression {}

    record DictOf(List<Map.Entry<Expression, Expression>> entries) implements Expression {}

    record Attribute(Expression target, String name) implements Expression {}

    record Item(Expression target, Expression key) implements Expression {}

    /** Bounds are null where they are left out. */
    record Slice(Expression target, Expression from, Expression to, Expression step) implements Expression {}

    record Call(Expression target, Arguments arguments) implements Expression {}

    record Arguments(List<Expression> positional, Map<String, Expression> named) {}

    record Filter(Expression value, String name, Arguments arguments) implements Expression {}

    record Test(Expression value, String name, List<Expression> arguments, boolean negated) implements Expression {}

    record Unary(String operator, Expression value) implements Expression {}

    record Binary(String operator, Expression left, Expression right) implements Expression {}

    /** {@code a < b < c}: every neighbouring pair is compared. */
    record Comparison(Expression first, List<String> operators, List<Expression> others) implements Expression {}

    /** {@code otherwise} is null where it is left out. */
    record Choice(Expression condition, Expression value, Expression otherwise) implements Expression {}
}
