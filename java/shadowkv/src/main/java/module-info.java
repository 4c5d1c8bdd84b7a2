/** A KV cache for long contexts by the ShadowKV method. */
module dev.shadowkv {
    requires jdk.jfr;

    exports dev.shadowkv;
    exports dev.shadowkv.kernels;
}
