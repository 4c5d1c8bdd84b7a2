package dev.shadowkv.llm.internal.jinja;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Expected texts follow the language's documentation and Python's rules; each was worked out by hand. */
class TemplateTest {
    private static String render(String template) {
        Map<String, Object> person = new LinkedHashMap<>();
        person.put("name", "Ada");
        person.put("age", 36L);
        Map<String, Object> variables = new LinkedHashMap<>();
        variables.put("person", person);
        variables.put("items", List.of("a", "b", "c"));
        variables.put("people", List.of(person, Map.of("name", "Bob", "age", 7L)));
        variables.put("nothing", null);
        variables.put("empty", new ArrayList<>());
        return Template.compile(template).render(variables);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '§', quoteCharacter = '`', ignoreLeadingAndTrailingWhitespace = true, value = {
        "{{ 1 + 2 * 3 }} § 7",
        "{{ (1 + 2) * 3 }} § 9",
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} § 3 -4 1 2 3.5 1024",
        "{{ 'a' ~ 1 ~ true ~ nothing }} § a1TrueNone",
        "{{ 'a' + 'b' * 2 }} § abb",
        "{{ [1, 2] + [3] }} § [1, 2, 3]",
        "{{ {'a': 1, 'b': [true, none]} }} § {'a': 1, 'b': [True, None]}",
        "{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ 'a' == 'b' }} § True False True False",
        "{{ 'b' in items }} {{ 'z' not in items }} {{ 'ell' in 'hello' }} {{ 'name' in person }} § True True True True",
        "{{ not true or true and false }} § False",
        "{{ not items is defined }} § False",
        "{{ 'x' or 'y' }} {{ '' or 'y' }} {{ 'x' and 'y' }} § x y y",
        "{{ 'yes' if items else 'no' }} {{ 'yes' if empty else 'no' }}{{ 'yes' if empty }} § yes no",
        "{{ items[0] }}{{ items[-1] }}{{ items[1:] }}{{ items[::-1] }}{{ items[:-1] }} § ac['b', 'c']['c', 'b', 'a']['a', 'b']",
        "{{ 'hello'[1:3] }} {{ 'hello'[-1] }} {{ 'hello'[::-1] }} § el o olleh",
        "{{ person.name }} {{ person['age'] }} {{ person.get('x', 'y') }} {{ person.missing }}| § Ada 36 y |",
        "{{ person.missing is defined }} {{ nothing is none }} {{ nothing is defined }} § False True True",
        "{{ items is iterable and items is not string and person is mapping }} § True",
        "{{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 1 is number }} {{ 'A' is upper }} {{ 2 is in [1, 2] }} § True True True True True",
        "{{ ' x '|trim }}{{ items|length }}{{ items|join('-') }}{{ items|first }}{{ items|last }} § x3a-b-cac",
        "{{ 'aXb'|lower|upper }} {{ 'hello world'|title }} {{ 'hELLO'|capitalize }} § AXB Hello World Hello",
        "{{ missing|default('d') }} {{ ''|default('d', true) }} {{ ''|d('e') }} § d d",
        "{{ people|map(attribute='name')|join(',') }} {{ people|selectattr('age', 'gt', 10)|map(attribute='name')|list }} § Ada,Bob ['Ada']",
        "{{ people|rejectattr('name', 'equalto', 'Ada')|list|length }} {{ [3,1,2]|sort }} {{ [1,1,2]|unique|list }} § 1 [1, 2, 3] [1, 2]",
        "{{ items|map('upper')|join }} {{ [0,1,2]|select|list }} {{ [1,2,3]|select('odd')|list }} § ABC [1, 2] [1, 3]",
        "{{ '3'|int + 1 }} {{ 'x'|int }} {{ 3.0 }} {{ 1.5|string }} {{ -3|abs }} § 4 0 3.0 1.5 3",
        "{{ '  a '.strip() }}{{ 'xxa'.lstrip('x') }}{{ 'ab\\n'.rstrip('\\n') }} § aaab",
        "{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'a,b,c'.rsplit(',', 1) }} § ['a', 'b', 'c'] ['a', 'b,c'] ['a', 'b'] ['a,b', 'c']",
        "{{ 'x</t>y'.split('</t>')[-1] }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} § y True True",
        "{{ 'aaa'.replace('a', 'b', 2) }} {{ 'abcabc'.find('c') }} {{ 'abab'.count('ab') }} {{ '-'.join(items) }} § bba 2 2 a-b-c",
        "{{ person.items()|list }} {{ person.keys()|join }} {{ person|items|list|length }} § [['name', 'Ada'], ['age', 36]] nameage 2",
        "{{ range(3)|list }} {{ range(1, 6, 2)|list }} {{ dict(a=1) }} § [0, 1, 2] [1, 3, 5] {'a': 1}",
        "{{ 'a' 'b' }} {{ \"q\\\"\" }} {{ 'é\\u00e9' }} § ab q\" éé",
        "{{ \"it's\" }} {{ [\"it's\", 'a\"b'] }} § it's [\"it's\", 'a\"b']",
        "{% set x, y = [1, 2] %}{{ x }}{{ y }} § 12",
        "{% set text %}a{{ 1 }}{% endset %}{{ text }}! § a1!",
        "{% for k, v in person.items() %}{{ k }}={{ v }};{% endfor %} § name=Ada;age=36;",
        "{% for x in items if x != 'b' %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% endfor %} § 1a,2c",
        "{% for x in empty %}x{% else %}none{% endfor %} § none",
        "{% for x in items %}{% if x == 'b' %}{% continue %}{% endif %}{% if x == 'c' %}{% break %}{% endif %}{{ x }}{% endfor %} § a",
        "{% for x in items %}{{ loop.previtem }}{{ x }}{{ loop.nextitem }}{{ loop.cycle('!', '?') }}{% endfor %} § ab!abc?bc!",
        "{% set x = 1 %}{% for i in items %}{% set x = 2 %}{% endfor %}{{ x }} § 1",
        "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }} § 2",
        "{% set ns = namespace(n=0) %}{% for i in items %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }} § 3",
        "{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m('x') }}{{ m('x', b='y') }}{{ m(1, 2) }} § [xB][xy][12]",
        "{% if false %}a{% elif nothing %}b{% else %}c{% endif %} § c",
        "{# a comment #}x{% raw %}{{ y }}{% endraw %} § x{{ y }}",
        "{% generation %}x{% endgeneration %} § x",
        "{{ person|tojson }} § {\"name\": \"Ada\", \"age\": 36}",
        "{{ ['<é>', 1.0, true, none, \"q\\\"\"]|tojson }} § [\"<é>\", 1.0, true, null, \"q\\\"\"]",
        "{{ missing }}{{ missing|length }} § 0",
        "{{ 2 * 'ab' }} {{ [1] * 2 }} {{ '3.7'|int }} {{ missing is iterable }} {{ missing|sort }}{{ 5[1:] }} § abab [1, 1] 3 True []"
    })
    void evaluates(String template, String expected) {
        assertThat(render(template)).isEqualToIgnoringWhitespace(expected);
    }

    @Test
    void whiteSpaceIsExact() {
        assertThat(render("a\n{% if true %}\nb\n{% endif %}\nc\n")).isEqualTo("a\nb\nc");
        assertThat(render("a\n  {% if true %}\n  b\n  {% endif %}\nc")).isEqualTo("a\n  b\nc");
        assertThat(render("a  {%- if true -%}  b  {%- endif -%}  c")).isEqualTo("abc");
        assertThat(render("a \n {{- 'b' -}} \n c")).isEqualTo("abc");
        assertThat(render("  {{ 'b' }}\nc\n\n")).isEqualTo("  b\nc\n");
        assertThat(render("x\n  {# note #}\ny")).isEqualTo("x\ny");
        assertThat(render("  {%+ if true %}x{% endif +%}\ny")).isEqualTo("  x\ny");
        assertThat(render("x {% if true %}y{% endif %}")).isEqualTo("x y");
        assertThat(render("a\r\n{% if true %}\r\nb{% endif %}")).isEqualTo("a\nb");
    }

    @Test
    void jsonIsIndentedAsAsked() {
        assertThat(render("{{ {'a': [1, {}], 'b': []}|tojson(indent=2) }}"))
                .isEqualTo("{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '§', quoteCharacter = '`', value = {
        "{{ raise_exception('Roles must alternate') }} § the template raised: Roles must alternate",
        "{{ missing.name }} § missing is undefined, it has no attribute name",
        "{{ missing.name() }} § missing is undefined, it has no method name",
        "{{ missing() }} § cannot call missing, which is undefined",
        "{{ 1 + 'a' }} § cannot compute an integer + a string",
        "{{ 1 < 'a' }} § cannot compare an integer with a string",
        "{{ 1 / 0 }} § division by zero",
        "{{ 'a'.format(1) }} § has no method format",
                "{{ [1]|nonsense }} § the filter nonsense is not supported",
        "{{ 1 is nonsense }} § the test nonsense is not supported",
        "{% include 'x' %} § the tag include is not supported",
        "{% if true %} § expected",
        "{{ 1 § not closed by }}",
        "{{ 'a }} § a string is not closed",
        "{# a § a comment is not closed",
        "{% endif %} § the tag endif is not supported",
        "{% for x in 3 %}{% endfor %} § cannot iterate over an integer",
        "{% set x.y = 1 %} § x is no namespace",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }} § nested too deep",
        "{{ range(100000000) }} § is not possible",
        "a~~{{ ; }} § line 3: unexpected character ;"
    })
    void complainsClearly(String template, String message) {
        assertThatThrownBy(() -> render(template.replace("~", "\n")))
                .isInstanceOf(JinjaException.class)
                .hasMessageContaining(message);
    }
}
