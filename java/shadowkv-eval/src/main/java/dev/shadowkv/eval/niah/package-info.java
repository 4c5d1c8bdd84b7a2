/** A needle in a haystack at every length and depth. */
package dev.shadowkv.eval.niah;
