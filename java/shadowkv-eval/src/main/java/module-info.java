/** Long-context evaluations. */
module dev.shadowkv.eval {
    requires transitive dev.shadowkv.llm;
    requires com.fasterxml.jackson.databind;
    requires java.desktop;
    requires org.knowm.xchart;

    exports dev.shadowkv.eval;
    exports dev.shadowkv.eval.fidelity;
    exports dev.shadowkv.eval.haystack;
    exports dev.shadowkv.eval.longbench;
    exports dev.shadowkv.eval.longgen;
    exports dev.shadowkv.eval.needle;
    exports dev.shadowkv.eval.niah;
    exports dev.shadowkv.eval.ruler;
}
