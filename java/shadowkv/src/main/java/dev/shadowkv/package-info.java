/** The KV cache, its devices and its memory. */
package dev.shadowkv;
