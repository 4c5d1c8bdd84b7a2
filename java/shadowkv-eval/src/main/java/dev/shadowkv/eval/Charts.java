package dev.shadowkv.eval;

import java.awt.Color;
import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.TreeSet;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.CategoryChart;
import org.knowm.xchart.CategoryChartBuilder;
import org.knowm.xchart.CategorySeries;
import org.knowm.xchart.HeatMapChart;
import org.knowm.xchart.HeatMapChartBuilder;
import org.knowm.xchart.VectorGraphicsEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.internal.chartpart.Chart;
import org.knowm.xchart.style.Styler.LegendPosition;

/** Pictures of results. A name that ends in {@code .svg} makes an SVG, one that ends in {@code .png} a PNG. */
public final class Charts {
    private static final int WIDTH = 900;
    private static final int HEIGHT = 540;
    private static final Color[] RED_TO_GREEN = {
        new Color(0xB2, 0x18, 0x2B), new Color(0xF4, 0xA5, 0x82), new Color(0xFD, 0xF3, 0xC0), new Color(0x1A, 0x98, 0x50)
    };

    static {
        if (System.getProperty("java.awt.headless") == null) {
            System.setProperty("java.awt.headless", "true");
        }
    }

    private Charts() {}

    /**
     * The picture of a needle in a haystack: a column a length, a row a depth, red where needles are lost and green
     * where they are found.
     *
     * @param variant whose results are shown
     * @throws EvaluationException when the variant has no results with a depth, or the file cannot be written
     */
    public static void heatMap(Collection<Result> results, String variant, String title, Path file) {
        SortedMap<Double, SortedMap<Integer, List<Double>>> scores = new TreeMap<>();
        for (Result result : results) {
            Case origin = result.prompt().origin();
            if (result.variant().equals(variant) && origin.depth() != Case.NO_DEPTH) {
                scores.computeIfAbsent(origin.depth(), depth -> new TreeMap<>())
                        .computeIfAbsent(origin.length(), length -> new ArrayList<>())
                        .add(result.score());
            }
        }
        if (scores.isEmpty()) {
            throw new EvaluationException("there are no results of " + variant + " with a depth");
        }
        TreeSet<Integer> lengths = new TreeSet<>();
        scores.values().forEach(row -> lengths.addAll(row.keySet()));
        List<Double> depths = List.copyOf(scores.keySet());
        double[][] values = new double[depths.size()][lengths.size()];
        int column = 0;
        for (int length : lengths) {
            for (int row = 0; row < depths.size(); row++) {
                List<Double> cell = scores.get(depths.get(row)).get(length);
                values[row][column] = cell == null ? Double.NaN : 100 * Statistics.of(cell).mean();
            }
            column++;
        }
        List<String> columns = lengths.stream().map(Charts::lengthLabel).toList();
        List<String> rows =
                depths.stream().map(depth -> String.format(Locale.ROOT, "%.0f", 100 * depth)).toList();
        grid(title, "context length (tokens)", columns, "depth of the needle (%)", rows, values, file);
    }

    /**
     * A table of numbers from 0 to 100 as a picture, such as captured mass by layer and head.
     *
     * @param values by row and column, the first row at the top; NaN leaves a cell empty
     * @throws EvaluationException when the file cannot be written
     */
    public static void grid(
            String title,
            String columnTitle,
            List<String> columns,
            String rowTitle,
            List<String> rows,
            double[][] values,
            Path file) {
        // Rows are drawn from below.
        List<Number[]> cells = new ArrayList<>();
        for (int column = 0; column < columns.size(); column++) {
            for (int row = 0; row < rows.size(); row++) {
                double value = values[rows.size() - 1 - row][column];
                if (!Double.isNaN(value)) {
                    cells.add(new Number[] {column, row, value});
                }
            }
        }
        HeatMapChart chart = new HeatMapChartBuilder()
                .width(WIDTH)
                .height(HEIGHT)
                .title(title)
                .xAxisTitle(columnTitle)
                .yAxisTitle(rowTitle)
                .build();
        chart.getStyler().setMin(0);
        chart.getStyler().setMax(100);
        chart.getStyler().setRangeColors(RED_TO_GREEN);
        chart.getStyler().setShowValue(true);
        chart.getStyler().setHeatMapValueDecimalPattern("#0");
        chart.getStyler().setHeatMapDecimalValueFormatter(value -> String.format(Locale.ROOT, "%.0f", value));
        chart.getStyler().setChartBackgroundColor(Color.WHITE);
        chart.addSeries("score", columns, rows.reversed(), cells);
        save(chart, file);
    }

    private static String lengthLabel(int length) {
        return length % 1024 == 0 ? length / 1024 + "K" : Integer.toString(length);
    }

    /**
     * Scores against a setting such as the budget or the rank, one line a task or variant, with standard errors. The
     * settings are spaced evenly, since they usually double.
     *
     * @param setting what the horizontal axis shows
     * @param lines for each line its statistics by the value of the setting; every line needs the same values
     * @throws EvaluationException when there is no line or the file cannot be written
     */
    public static void accuracy(
            String title, String setting, Map<String, SortedMap<Double, Statistics>> lines, Path file) {
        if (lines.isEmpty()) {
            throw new EvaluationException("there is nothing to draw against " + setting);
        }
        List<Double> values = List.copyOf(lines.values().iterator().next().keySet());
        CategoryChart chart = new CategoryChartBuilder()
                .width(WIDTH)
                .height(HEIGHT)
                .title(title)
                .xAxisTitle(setting)
                .yAxisTitle("score")
                .build();
        chart.getStyler().setDefaultSeriesRenderStyle(CategorySeries.CategorySeriesRenderStyle.Line);
        chart.getStyler().setLegendPosition(LegendPosition.OutsideE);
        chart.getStyler().setChartBackgroundColor(Color.WHITE);
        chart.getStyler().setOverlapped(true);
        chart.getStyler().setYAxisMax(100.0);
        List<String> labels = values.stream().map(Charts::valueLabel).toList();
        for (Map.Entry<String, SortedMap<Double, Statistics>> line : new LinkedHashMap<>(lines).entrySet()) {
            if (!List.copyOf(line.getValue().keySet()).equals(values)) {
                throw new EvaluationException(
                        "the line " + line.getKey() + " has values of " + setting + " that others have not");
            }
            List<Double> means = new ArrayList<>();
            List<Double> errors = new ArrayList<>();
            for (Statistics statistics : line.getValue().values()) {
                means.add(100 * statistics.mean());
                errors.add(Double.isNaN(statistics.standardError()) ? 0 : 100 * statistics.standardError());
            }
            chart.addSeries(line.getKey(), labels, means, errors);
        }
        save(chart, file);
    }

    /**
     * Numbers over time or position, one line each: residual energy, agreement, captured mass.
     *
     * @throws EvaluationException when there is no line or the file cannot be written
     */
    public static void lines(
            String title, String xTitle, String yTitle, Map<String, SortedMap<Double, Double>> lines, Path file) {
        if (lines.isEmpty()) {
            throw new EvaluationException("there is nothing to draw over " + xTitle);
        }
        XYChart chart = new XYChartBuilder()
                .width(WIDTH)
                .height(HEIGHT)
                .title(title)
                .xAxisTitle(xTitle)
                .yAxisTitle(yTitle)
                .build();
        chart.getStyler().setLegendPosition(LegendPosition.OutsideE);
        chart.getStyler().setChartBackgroundColor(Color.WHITE);
        chart.getStyler().setMarkerSize(4);
        lines.forEach((name, line) ->
                chart.addSeries(name, List.copyOf(line.keySet()), List.copyOf(line.values())));
        save(chart, file);
    }

    private static String valueLabel(double value) {
        return value == Math.rint(value) ? Long.toString((long) value) : Double.toString(value);
    }

    private static void save(Chart<?, ?> chart, Path file) {
        String name = file.getFileName().toString().toLowerCase(Locale.ROOT);
        if (!name.endsWith(".svg") && !name.endsWith(".png")) {
            throw new EvaluationException(file + ": a chart's name must end in .svg or .png");
        }
        try (OutputStream out = new BufferedOutputStream(Files.newOutputStream(file))) {
            if (name.endsWith(".svg")) {
                VectorGraphicsEncoder.saveVectorGraphic(chart, out, VectorGraphicsEncoder.VectorGraphicsFormat.SVG);
            } else {
                BitmapEncoder.saveBitmap(chart, out, BitmapEncoder.BitmapFormat.PNG);
            }
        } catch (IOException e) {
            throw new EvaluationException(file + ": cannot be written: " + e.getMessage(), e);
        } catch (LinkageError | InternalError e) {
            // Text needs the system's font library, which bare machines lack.
            throw new EvaluationException(file + ": charts need fonts (package fontconfig): " + e.getMessage(), e);
        }
    }
}
