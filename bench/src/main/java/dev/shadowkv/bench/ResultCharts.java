package dev.shadowkv.bench;

import java.awt.Color;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.BitmapEncoder.BitmapFormat;
import org.knowm.xchart.CategoryChart;
import org.knowm.xchart.CategoryChartBuilder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.internal.chartpart.Chart;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.markers.SeriesMarkers;

/** Pictures of results, as PNG: their SVG is ten times as large. */
final class ResultCharts {

    private static final int WIDTH = 860;
    private static final int HEIGHT = 460;
    /** With room for labels that stand upright. */
    private static final int BAR_HEIGHT = 560;
    private static final Color[] COLORS = {new Color(0xB2, 0x18, 0x2B), new Color(0x21, 0x66, 0xAC), new Color(0x1A, 0x98, 0x50),
        new Color(0xE0, 0x8A, 0x1E)};

    static {
        if (System.getProperty("java.awt.headless") == null) {
            System.setProperty("java.awt.headless", "true");
        }
    }

    private ResultCharts() {
    }

    /** Lines over a logarithmic axis of tokens. */
    static void lines(String title, String y, Map<String, double[][]> series, Path file) throws IOException {
        XYChart chart = new XYChartBuilder().width(WIDTH).height(HEIGHT).title(title).xAxisTitle("context (thousands of tokens)")
                .yAxisTitle(y).build();
        style(chart.getStyler());
        chart.getStyler().setYAxisLogarithmic(true);
        chart.getStyler().setXAxisMin(0.0);
        // Whole decades: those alone are labelled.
        double smallest = series.values().stream().flatMapToDouble(line -> Arrays.stream(line[1])).min().orElse(1);
        double largest = series.values().stream().flatMapToDouble(line -> Arrays.stream(line[1])).max().orElse(10);
        chart.getStyler().setYAxisMin(Math.pow(10, Math.floor(Math.log10(smallest))));
        chart.getStyler().setYAxisMax(Math.pow(10, Math.max(Math.ceil(Math.log10(largest)), Math.floor(Math.log10(smallest)) + 1)));
        for (Map.Entry<String, double[][]> entry : series.entrySet()) {
            chart.addSeries(entry.getKey(), entry.getValue()[0], entry.getValue()[1]).setMarker(SeriesMarkers.CIRCLE);
        }
        save(chart, file);
    }

    /** One bar a label. */
    static void bars(String title, String y, List<String> labels, List<Double> values, Path file) throws IOException {
        CategoryChart chart = new CategoryChartBuilder().width(WIDTH).height(BAR_HEIGHT).title(title).xAxisTitle("").yAxisTitle(y)
                .build();
        style(chart.getStyler());
        chart.getStyler().setLegendVisible(false);
        chart.getStyler().setXAxisLabelRotation(90);
        chart.getStyler().setSeriesColors(new Color[] {COLORS[1]});
        chart.getStyler().setYAxisMin(0.0);
        chart.addSeries("values", new ArrayList<>(labels), new ArrayList<>(values));
        save(chart, file);
    }

    /** Bars of several series side by side for each label. */
    static void bars(String title, String y, List<String> labels, Map<String, List<Double>> series, Path file) throws IOException {
        CategoryChart chart = new CategoryChartBuilder().width(WIDTH).height(BAR_HEIGHT).title(title).xAxisTitle("").yAxisTitle(y)
                .build();
        style(chart.getStyler());
        chart.getStyler().setXAxisLabelRotation(90);
        chart.getStyler().setYAxisMin(0.0);
        for (Map.Entry<String, List<Double>> entry : series.entrySet()) {
            chart.addSeries(entry.getKey(), new ArrayList<>(labels), entry.getValue());
        }
        save(chart, file);
    }

    private static void style(Styler styler) {
        styler.setChartBackgroundColor(Color.WHITE);
        styler.setLegendPosition(Styler.LegendPosition.OutsideS);
        styler.setLegendLayout(Styler.LegendLayout.Horizontal);
        styler.setSeriesColors(COLORS);
    }

    private static void save(Chart<?, ?> chart, Path file) throws IOException {
        Files.createDirectories(file.toAbsolutePath().getParent());
        try (OutputStream out = Files.newOutputStream(file)) {
            BitmapEncoder.saveBitmap(chart, out, BitmapFormat.PNG);
        }
    }
}
