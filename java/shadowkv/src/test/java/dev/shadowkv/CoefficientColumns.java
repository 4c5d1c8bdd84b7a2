package dev.shadowkv;

/** What columns of coefficients of 8 bits stand for, as the C header says it. */
public final class CoefficientColumns {

    private CoefficientColumns() {
    }

    /** The column that a column refines, or -1. */
    public static int refined(int column, int rank) {
        return column < rank / 10 * 2 && column % 2 == 1 ? column - 1 : -1;
    }

    /** Number of the direction that a column stands for. */
    public static int direction(int column, int rank) {
        int direction = -1;
        for (int j = 0; j <= column; j++) {
            direction += refined(j, rank) < 0 ? 1 : 0;
        }
        return direction;
    }
}
