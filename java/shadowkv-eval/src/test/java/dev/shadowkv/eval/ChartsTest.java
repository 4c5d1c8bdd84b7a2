package dev.shadowkv.eval;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import javax.imageio.ImageIO;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ChartsTest {
    @TempDir
    private Path folder;

    private static List<Result> results(double score) {
        List<Result> results = new ArrayList<>();
        for (int length : new int[] {1024, 2048, 3000}) {
            for (double depth : new double[] {0, 0.5, 1}) {
                for (int index = 0; index < 2; index++) {
                    Prompt prompt = new Prompt(new Case("niah", length, depth, index, 1), "", "", List.of("a"), 1, true);
                    results.add(new Result("dense", prompt, new Answer("a", 1, 1, 0, 0, Map.of()), score));
                }
            }
        }
        return results;
    }

    /** The share of the picture's points that are rather green, or rather red. */
    private static double share(Path png, boolean green) throws IOException {
        BufferedImage image = ImageIO.read(png.toFile());
        long count = 0;
        for (int y = 0; y < image.getHeight(); y++) {
            for (int x = 0; x < image.getWidth(); x++) {
                int red = image.getRGB(x, y) >> 16 & 0xff;
                int other = image.getRGB(x, y) >> 8 & 0xff;
                count += green && other > red + 60 || !green && red > other + 60 ? 1 : 0;
            }
        }
        return (double) count / image.getWidth() / image.getHeight();
    }

    @Test
    void foundNeedlesAreGreenAndLostOnesRed() throws IOException {
        Path found = folder.resolve("found.png");
        Charts.heatMap(results(1), "dense", "found", found);
        assertThat(share(found, true)).isGreaterThan(0.4);
        Path lost = folder.resolve("lost.png");
        Charts.heatMap(results(0), "dense", "lost", lost);
        assertThat(share(lost, false)).isGreaterThan(0.4);
        assertThat(share(lost, true)).isLessThan(0.05);
    }

    @Test
    void vectorPicturesHaveACellEach() throws IOException {
        Path file = folder.resolve("map.svg");
        Charts.heatMap(results(1), "dense", "Needles & hay", file);
        // Text is drawn as outlines, so only the cells can be looked for.
        assertThat(Files.readString(file)).startsWith("<?xml").contains("<svg");
        assertThat(Files.readString(file).split("<rect[^>]*fill:rgb\\(26,152,80\\)")).hasSize(1 + 9);
    }

    private static SortedMap<Double, Statistics> line(double... scores) {
        SortedMap<Double, Statistics> line = new TreeMap<>();
        for (int i = 0; i < scores.length; i++) {
            line.put(256.0 * (1 << i), new Statistics(10, scores[i], i == 1 ? Double.NaN : 0.05));
        }
        return line;
    }

    @Test
    void linesAreDrawn() throws IOException {
        Map<String, SortedMap<Double, Statistics>> lines = new LinkedHashMap<>();
        lines.put("vt", line(0.5, 0.8, 0.9));
        Path one = folder.resolve("one.svg");
        Charts.accuracy("Accuracy", "budget (tokens)", lines, one);
        lines.put("copy", line(0.7, 0.9, 1));
        Path two = folder.resolve("two.svg");
        Charts.accuracy("Accuracy", "budget (tokens)", lines, two);
        assertThat(Files.readString(one)).contains("<svg");
        assertThat(Files.size(two)).isGreaterThan(Files.size(one));
        Path png = folder.resolve("budget.png");
        Charts.accuracy("Accuracy", "budget (tokens)", lines, png);
        assertThat(ImageIO.read(png.toFile()).getWidth()).isEqualTo(900);
        lines.put("short", line(1));
        assertThatThrownBy(() -> Charts.accuracy("Accuracy", "budget", lines, png))
                .isInstanceOf(EvaluationException.class)
                .hasMessageContaining("the line short has values");
    }

    @Test
    void numbersOverTimeAndTablesAreDrawn() throws IOException {
        Path lines = folder.resolve("lines.png");
        Map<String, SortedMap<Double, Double>> series = Map.of("energy", new TreeMap<>(Map.of(0.0, 1.0, 500.0, 0.98)));
        Charts.lines("Residual energy", "tokens generated", "energy", series, lines);
        assertThat(ImageIO.read(lines.toFile()).getHeight()).isEqualTo(540);
        assertThatThrownBy(() -> Charts.lines("t", "time", "y", Map.of(), lines)).hasMessageContaining("nothing to draw over time");
        Path grid = folder.resolve("grid.svg");
        double[][] mass = {{100, 100, Double.NaN}, {0, 0, 0}};
        Charts.grid("Mass", "head", List.of("0", "1", "2"), "layer", List.of("0", "1"), mass, grid);
        String svg = Files.readString(grid);
        assertThat(svg.split("<rect[^>]*fill:rgb\\(26,152,80\\)")).hasSize(1 + 2);
        assertThat(svg.split("<rect[^>]*fill:rgb\\(178,24,43\\)")).hasSize(1 + 3);
        // The first row is drawn at the top.
        assertThat(firstY(svg, "26,152,80")).isLessThan(firstY(svg, "178,24,43"));
    }

    private static double firstY(String svg, String colour) {
        String cell = svg.substring(svg.indexOf("fill:rgb(" + colour + ")"));
        return Double.parseDouble(cell.replaceFirst("(?s).*? y=\"([0-9.]+)\".*", "$1"));
    }

    @Test
    void complainsClearly() {
        assertThatThrownBy(() -> Charts.heatMap(results(1), "shadow", "t", folder.resolve("a.png")))
                .hasMessage("there are no results of shadow with a depth");
        Path other = folder.resolve("a.gif");
        assertThatThrownBy(() -> Charts.heatMap(results(1), "dense", "t", other))
                .hasMessage(other + ": a chart's name must end in .svg or .png");
        assertThatThrownBy(() -> Charts.heatMap(results(1), "dense", "t", folder.resolve("no/a.png")))
                .isInstanceOf(EvaluationException.class)
                .hasMessageContaining("cannot be written");
        assertThatThrownBy(() -> Charts.accuracy("t", "rank", Map.of(), other)).hasMessageContaining("nothing to draw against rank");
    }
}
