/* The header compiles as C and the library links with nothing but itself. */
#include <stdio.h>

#include "shadowkv.h"

int main(void) {
  printf("abi version %u\n", skv_abi_version());
  return skv_abi_version() > 0 ? 0 : 1;
}
