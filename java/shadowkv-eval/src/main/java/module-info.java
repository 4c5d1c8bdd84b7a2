/** Long-context evaluations. */
module dev.shadowkv.eval {
    requires transitive dev.shadowkv.llm;
    requires com.fasterxml.jackson.databind;

    exports dev.shadowkv.eval;
    exports dev.shadowkv.eval.needle;
}
