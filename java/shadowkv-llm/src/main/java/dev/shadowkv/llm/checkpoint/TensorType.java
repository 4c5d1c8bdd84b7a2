package dev.shadowkv.llm.checkpoint;

import java.util.Optional;

/** Element types of a safetensors file, with the size of one element. */
public enum TensorType {
    BOOL("BOOL", 1),
    U8("U8", 1),
    I8("I8", 1),
    F8_E4M3("F8_E4M3", 1),
    F8_E5M2("F8_E5M2", 1),
    U16("U16", 2),
    I16("I16", 2),
    F16("F16", 2),
    BF16("BF16", 2),
    U32("U32", 4),
    I32("I32", 4),
    F32("F32", 4),
    U64("U64", 8),
    I64("I64", 8),
    F64("F64", 8);

    private final String code;
    private final int byteSize;

    TensorType(String code, int byteSize) {
        this.code = code;
        this.byteSize = byteSize;
    }

    /** The name in a file's header, such as {@code BF16}. */
    public String code() {
        return code;
    }

    /** Bytes of one element. */
    public int byteSize() {
        return byteSize;
    }

    static Optional<TensorType> ofCode(String code) {
        for (TensorType type : values()) {
            if (type.code.equals(code)) {
                return Optional.of(type);
            }
        }
        return Optional.empty();
    }
}
