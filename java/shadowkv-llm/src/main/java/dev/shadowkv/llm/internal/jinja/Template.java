package dev.shadowkv.llm.internal.jinja;

import java.util.List;
import java.util.Map;
import java.util.function.Function;

/**
 * A compiled template in the part of the Jinja language that chat templates are written in, with the semantics of the
 * Python library under {@code trim_blocks} and {@code lstrip_blocks}. The general Java port of Jinja brings a dozen
 * libraries, and its strings and lists have Java's methods where chat templates call Python's; hence this one.
 *
 * <p>Values are Java's: String, Boolean, Long, Double, List, Map with String keys, null for none. Immutable and usable
 * from any thread.
 */
public final class Template {
    private final List<Node.Statement> body;

    private Template(List<Node.Statement> body) {
        this.body = body;
    }

    /**
     * Compiles a template.
     *
     * @throws JinjaException when it is malformed or uses a tag that is not supported
     */
    public static Template compile(String source) {
        return new Template(Parser.parse(source));
    }

    /** A function that a template can call by the name of the variable that holds it. */
    public static Object function(Function<List<Object>, Object> body) {
        return (Values.Function) (positional, named) -> body.apply(positional);
    }

    /**
     * Renders the template.
     *
     * @param variables what the template sees besides the built-in functions
     * @throws JinjaException when the template fails or raises an exception of its own
     */
    public String render(Map<String, Object> variables) {
        return new Interpreter(variables).render(body);
    }
}
