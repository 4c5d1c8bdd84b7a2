package dev.shadowkv.cli;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.KvBatch;
import dev.shadowkv.MemoryPlan;
import java.util.Locale;

/** JSON for machines, numbers for people. */
final class Output {
    private static final ObjectMapper MAPPER = new ObjectMapper();

    private Output() {}

    static ObjectNode object() {
        return MAPPER.createObjectNode();
    }

    static ObjectNode object(String json) {
        try {
            return (ObjectNode) MAPPER.readTree(json);
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(e.getOriginalMessage(), e);
        }
    }

    static JsonNode tree(String json) {
        try {
            return MAPPER.readTree(json);
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(e.getOriginalMessage(), e);
        }
    }

    static String pretty(JsonNode node) {
        try {
            return MAPPER.writerWithDefaultPrettyPrinter().writeValueAsString(node);
        } catch (JsonProcessingException e) {
            throw new IllegalStateException(e);
        }
    }

    static ObjectNode plan(MemoryPlan plan) {
        ObjectNode node = object();
        node.put("sessions", plan.sessions());
        node.put("tokens", plan.tokens());
        node.put("sessionDeviceBytes", plan.sessionDeviceBytes());
        node.put("sessionHostBytes", plan.sessionPinnedBytes());
        node.put("deviceBytesPerToken", plan.deviceBytesPerToken());
        node.put("hostBytesPerToken", (double) plan.sessionPinnedBytes() / plan.tokens());
        node.put("deviceBytes", plan.deviceBytes());
        node.put("hostBytes", plan.pinnedBytes());
        return node;
    }

    static ObjectNode statistics(KvBatch.Statistics statistics) {
        ObjectNode node = object();
        node.put("steps", statistics.steps());
        node.put("selectedChunks", statistics.selectedChunks());
        node.put("fetchedChunks", statistics.fetchedChunks());
        node.put("residentShare", statistics.hitRate());
        node.put("landmarkMass", statistics.landmarkMass());
        return node;
    }

    static String bytes(double bytes) {
        if (bytes < 1024) {
            return String.format(Locale.ROOT, "%.0f B", bytes);
        }
        if (bytes < 1024 * 1024) {
            return String.format(Locale.ROOT, "%.2f KiB", bytes / 1024);
        }
        if (bytes < 1024L * 1024 * 1024) {
            return String.format(Locale.ROOT, "%.1f MiB", bytes / (1024 * 1024));
        }
        return String.format(Locale.ROOT, "%.2f GiB", bytes / (1024.0 * 1024 * 1024));
    }

    static String number(String format, double value) {
        return String.format(Locale.ROOT, format, value);
    }
}
