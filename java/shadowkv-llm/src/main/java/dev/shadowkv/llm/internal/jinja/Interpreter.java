package dev.shadowkv.llm.internal.jinja;

import dev.shadowkv.llm.internal.jinja.Node.Arguments;
import dev.shadowkv.llm.internal.jinja.Node.Expression;
import dev.shadowkv.llm.internal.jinja.Node.Statement;
import dev.shadowkv.llm.internal.jinja.Values.Function;
import dev.shadowkv.llm.internal.jinja.Values.Namespace;
import dev.shadowkv.llm.internal.jinja.Values.Undefined;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Runs a tree. A loop body and a macro have a scope of their own: what they set is gone after them. */
final class Interpreter {
    /** A runaway template must not take the machine with it. */
    private static final int MAXIMUM_OUTPUT = 64 << 20;

    private static final int MAXIMUM_CALLS = 200;

    private static final class Scope {
        private final Map<String, Object> names = new HashMap<>();
        private final Scope outer;

        private Scope(Scope outer) {
            this.outer = outer;
        }

        private Object find(String name) {
            for (Scope scope = this; scope != null; scope = scope.outer) {
                if (scope.names.containsKey(name)) {
                    return scope.names.get(name);
                }
            }
            return new Undefined(name);
        }
    }

    private enum Outcome {
        NORMAL,
        LEAVE,
        CONTINUE
    }

    private final Scope globals;
    private Scope scope;
    private StringBuilder output = new StringBuilder();
    private int calls;

    Interpreter(Map<String, Object> variables) {
        globals = new Scope(null);
        globals.names.putAll(Builtins.FUNCTIONS);
        globals.names.putAll(variables);
        scope = new Scope(globals);
    }

    String render(List<Statement> body) {
        run(body);
        return output.toString();
    }

    private Outcome run(List<Statement> body) {
        for (Statement statement : body) {
            Outcome outcome = run(statement);
            if (outcome != Outcome.NORMAL) {
                return outcome;
            }
        }
        return Outcome.NORMAL;
    }

    private Outcome run(Statement statement) {
        switch (statement) {
            case Node.Text text -> write(text.text());
            case Node.Output value -> write(Values.print(evaluate(value.value())));
            case Node.Set set -> assign(set);
            case Node.SetBlock set -> scope.names.put(set.target(), capture(set.body()));
            case Node.Macro macro -> scope.names.put(macro.name(), function(macro));
            case Node.Jump jump -> {
                return jump.leave() ? Outcome.LEAVE : Outcome.CONTINUE;
            }
            case Node.Group group -> {
                return run(group.body());
            }
            case Node.If choice -> {
                for (Node.Branch branch : choice.branches()) {
                    if (Values.truth(evaluate(branch.condition()))) {
                        return run(branch.body());
                    }
                }
                return run(choice.otherwise());
            }
            case Node.For loop -> loop(loop);
        }
        return Outcome.NORMAL;
    }

    private void write(String text) {
        if (output.length() + (long) text.length() > MAXIMUM_OUTPUT) {
            throw new JinjaException("the output exceeds " + MAXIMUM_OUTPUT + " characters");
        }
        output.append(text);
    }

    private void assign(Node.Set set) {
        Object value = evaluate(set.value());
        if (set.attribute() != null) {
            if (!(scope.find(set.targets().getFirst()) instanceof Namespace namespace)) {
                throw new JinjaException(set.targets().getFirst() + " is no namespace, its fields cannot be set");
            }
            namespace.fields().put(set.attribute(), value);
        } else {
            bind(set.targets(), value);
        }
    }

    private void bind(List<String> targets, Object value) {
        if (targets.size() == 1) {
            scope.names.put(targets.getFirst(), value);
            return;
        }
        List<Object> items = Values.iterate(value);
        if (items.size() != targets.size()) {
            throw new JinjaException("cannot unpack " + items.size() + " values into " + targets);
        }
        for (int i = 0; i < items.size(); i++) {
            scope.names.put(targets.get(i), items.get(i));
        }
    }

    private String capture(List<Statement> body) {
        StringBuilder outer = output;
        output = new StringBuilder();
        try {
            run(body);
            return output.toString();
        } finally {
            output = outer;
        }
    }

    private void loop(Node.For loop) {
        List<Object> items = Values.iterate(evaluate(loop.items()));
        Scope outer = scope;
        try {
            if (loop.condition() != null) {
                List<Object> kept = new ArrayList<>();
                for (Object item : items) {
                    scope = new Scope(outer);
                    bind(loop.targets(), item);
                    if (Values.truth(evaluate(loop.condition()))) {
                        kept.add(item);
                    }
                }
                items = kept;
            }
            for (int i = 0; i < items.size(); i++) {
                scope = new Scope(outer);
                scope.names.put("loop", loopVariables(items, i));
                bind(loop.targets(), items.get(i));
                if (run(loop.body()) == Outcome.LEAVE) {
                    break;
                }
            }
        } finally {
            scope = outer;
        }
        if (items.isEmpty()) {
            run(loop.otherwise());
        }
    }

    private static Map<String, Object> loopVariables(List<Object> items, int index) {
        Map<String, Object> loop = new HashMap<>();
        int length = items.size();
        loop.put("index", index + 1L);
        loop.put("index0", (long) index);
        loop.put("revindex", (long) length - index);
        loop.put("revindex0", length - index - 1L);
        loop.put("first", index == 0);
        loop.put("last", index == length - 1);
        loop.put("length", (long) length);
        loop.put("previtem", index > 0 ? items.get(index - 1) : new Undefined("loop.previtem"));
        loop.put("nextitem", index + 1 < length ? items.get(index + 1) : new Undefined("loop.nextitem"));
        loop.put("cycle", (Function) (positional, named) -> positional.get(index % positional.size()));
        return loop;
    }

    private Function function(Node.Macro macro) {
        Scope defined = scope;
        return (positional, named) -> {
            Scope caller = scope;
            if (++calls > MAXIMUM_CALLS) {
                throw new JinjaException("macro " + macro.name() + " is nested too deep");
            }
            scope = new Scope(defined);
            try {
                for (int i = 0; i < macro.parameters().size(); i++) {
                    Node.Parameter parameter = macro.parameters().get(i);
                    Object value = i < positional.size()
                            ? positional.get(i)
                            : named.containsKey(parameter.name())
                                    ? named.get(parameter.name())
                                    : parameter.value() != null
                                            ? evaluate(parameter.value())
                                            : new Undefined(parameter.name());
                    scope.names.put(parameter.name(), value);
                }
                return capture(macro.body());
            } finally {
                scope = caller;
                calls--;
            }
        };
    }

    private Object evaluate(Expression expression) {
        return switch (expression) {
            case Node.Literal literal -> literal.value();
            case Node.Variable variable -> scope.find(variable.name());
            case Node.ListOf list -> evaluateAll(list.items());
            case Node.DictOf dict -> {
                Map<Object, Object> map = new LinkedHashMap<>();
                dict.entries().forEach(entry -> map.put(evaluate(entry.getKey()), evaluate(entry.getValue())));
                yield map;
            }
            case Node.Attribute attribute -> attribute(evaluate(attribute.target()), attribute.name());
            case Node.Item item -> item(evaluate(item.target()), evaluate(item.key()));
            case Node.Slice slice -> Operators.slice(
                    evaluate(slice.target()), bound(slice.from()), bound(slice.to()), bound(slice.step()));
            case Node.Call call -> call(call);
            case Node.Filter filter -> Builtins.filter(
                    filter.name(),
                    evaluate(filter.value()),
                    evaluateAll(filter.arguments().positional()),
                    evaluateAll(filter.arguments().named()));
            case Node.Test test -> test.negated()
                    != Builtins.test(test.name(), evaluate(test.value()), evaluateAll(test.arguments()));
            case Node.Unary unary -> Operators.unary(unary.operator(), evaluate(unary.value()));
            case Node.Binary binary -> binary(binary);
            case Node.Comparison comparison -> compare(comparison);
            case Node.Choice choice -> Values.truth(evaluate(choice.condition()))
                    ? evaluate(choice.value())
                    : choice.otherwise() == null ? new Undefined("the value of an if without else") : evaluate(choice.otherwise());
        };
    }

    private List<Object> evaluateAll(List<Expression> expressions) {
        List<Object> values = new ArrayList<>(expressions.size());
        expressions.forEach(expression -> values.add(evaluate(expression)));
        return values;
    }

    private Map<String, Object> evaluateAll(Map<String, Expression> expressions) {
        Map<String, Object> values = new LinkedHashMap<>();
        expressions.forEach((name, expression) -> values.put(name, evaluate(expression)));
        return values;
    }

    private Integer bound(Expression expression) {
        Object value = expression == null ? null : evaluate(expression);
        return value == null ? null : (Integer) Values.integer(value);
    }

    private Object binary(Node.Binary binary) {
        Object left = evaluate(binary.left());
        return switch (binary.operator()) {
            case "and" -> Values.truth(left) ? evaluate(binary.right()) : left;
            case "or" -> Values.truth(left) ? left : evaluate(binary.right());
            default -> Operators.binary(binary.operator(), left, evaluate(binary.right()));
        };
    }

    private boolean compare(Node.Comparison comparison) {
        Object left = evaluate(comparison.first());
        for (int i = 0; i < comparison.others().size(); i++) {
            Object right = evaluate(comparison.others().get(i));
            if (!Operators.compare(comparison.operators().get(i), left, right)) {
                return false;
            }
            left = right;
        }
        return true;
    }

    private static Object attribute(Object target, String name) {
        return switch (target) {
            case Namespace namespace -> namespace.fields().getOrDefault(name, new Undefined(name));
            case Map<?, ?> map when map.containsKey(name) -> map.get(name);
            case Undefined undefined -> throw new JinjaException(
                    undefined.what() + " is undefined, it has no attribute " + name);
            case null, default -> new Undefined(name);
        };
    }

    private static Object item(Object target, Object key) {
        if (target instanceof List<?> || target instanceof String) {
            if (!(key instanceof Long)) {
                return new Undefined(Values.print(key));
            }
            List<Object> items = Values.iterate(target);
            int index = Values.integer(key);
            int at = index < 0 ? index + items.size() : index;
            return at >= 0 && at < items.size() ? items.get(at) : new Undefined("element " + index);
        }
        if (target instanceof Map<?, ?> map) {
            return map.containsKey(key) ? map.get(key) : new Undefined(Values.print(key));
        }
        return attribute(target, Values.print(key));
    }

    private Object call(Node.Call call) {
        Arguments arguments = call.arguments();
        if (call.target() instanceof Node.Attribute attribute) {
            Object target = evaluate(attribute.target());
            boolean own = target instanceof Namespace
                    || target instanceof Map<?, ?> map && map.get(attribute.name()) instanceof Function;
            if (!own) {
                return Methods.call(
                        target,
                        attribute.name(),
                        evaluateAll(arguments.positional()),
                        evaluateAll(arguments.named()));
            }
        }
        Object target = evaluate(call.target());
        if (target instanceof Function function) {
            return function.call(evaluateAll(arguments.positional()), evaluateAll(arguments.named()));
        }
        throw new JinjaException("cannot call " + Values.type(target));
    }
}
