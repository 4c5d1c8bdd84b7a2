/** The command line. */
module dev.shadowkv.cli {
    requires dev.shadowkv.eval;
    requires dev.shadowkv.llm;
    requires com.fasterxml.jackson.databind;
    requires info.picocli;
    requires me.tongfei.progressbar;
    requires org.knowm.xchart;

    opens dev.shadowkv.cli to info.picocli;
}
