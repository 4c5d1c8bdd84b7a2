/** Long-context evaluations. */
module dev.shadowkv.eval {
    requires transitive dev.shadowkv.llm;
    requires com.fasterxml.jackson.databind;
}
