package dev.shadowkv;

import java.io.IOException;

/** What a file holds of a layer's state beside its memory. */
final class ShadowStateFile {

    private ShadowStateFile() {
    }

    static void transfer(SessionFile.Transfer file, LayerState state, ShadowLayout layout, ShadowOptions options,
                         long capacity) throws IOException {
        int chunk = options.geometry().chunk();
        int heads = options.geometry().keyValueHeads();
        state.length = file.number("length", state.length, 0, capacity);
        state.sealed = true;
        state.exact = file.number("exact", state.exact ? 1 : 0, 0, 1) == 1;
        state.recentBegin = file.number("recentBegin", state.recentBegin, 0, state.length) / chunk * chunk;
        if (state.length - state.recentBegin > options.geometry().window()) {
            throw new IOException("the recent window is longer than this cache's");
        }
        long mostOutliers = state.exact ? layout.exactChunks : options.outlierCapacity();
        state.outliers = (int) file.number("outliers", state.outliers, 0, mostOutliers);
        state.ringBegin = file.number("ringBegin", state.ringBegin, 0, state.recentBegin);
        state.anchorLength = file.number("anchorLength", state.anchorLength, 0, state.length);
        state.anchorBegin = file.number("anchorBegin", state.anchorBegin, 0, state.recentBegin);
        state.basisRows = (int) file.number("basisRows", state.basisRows, 0, options.geometry().rank());
        state.chosen = (int) file.number("chosen", state.chosen, 0, options.outliers());
        state.chosenIds = file.integers("chosenIds", state.chosenIds, heads * state.chosen);
        state.chosenRadius = file.floats("chosenRadius", state.chosenRadius, heads * state.chosen);
        int residual = (int) file.number("residual", state.residualIds.length, 0, options.outlierCapacity());
        state.residualIds = file.integers("residualIds", state.residualIds, residual);
        state.residualRadius = file.floats("residualRadius", state.residualRadius, heads * residual);
    }
}
