package dev.shadowkv.llm;

import dev.shadowkv.Device;

/** The device that the build names by -Dshadowkv.test.device: cpu, cuda or cuda:N. */
public final class TestDevice {

    private static final String NAME = System.getProperty("shadowkv.test.device", "cpu");
    static final boolean CUDA = NAME.startsWith("cuda");

    private TestDevice() {
    }

    public static Device open() {
        String[] parts = NAME.split(":");
        return CUDA ? Device.cuda(parts.length > 1 ? Integer.parseInt(parts[1]) : 0) : Device.cpu();
    }
}
