#!/usr/bin/env bash
# Makes dist/shadowkv-<version>-linux-x86_64.tar.gz: command line, tests, benchmarks and native tests with a Java
# runtime of their own, for a machine that has neither JDK nor Maven (glibc as of Debian 12 or newer).
#
#   bench/bundle.sh [--with-openblas] [Maven options, as -Dshadowkv.cuda.architectures=90a-real]
#
# OpenBLAS serves the CPU backend alone, which works without it or takes the machine's own; with it in the archive the
# limit of 64 MiB is not kept.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
limit=$((64 * 1024 * 1024))
# Left out: charts, which need java.desktop (a third of the runtime), and what only soft assertions need.
left_out='^(xchart|VectorGraphics2D|byte-buddy)-'
if [ "${1:-}" = --with-openblas ]; then
  limit=$((80 * 1024 * 1024))
  shift
else
  left_out="$left_out|^(openblas|javacpp)-"
fi

fail() { echo "bundle.sh: $*" >&2; exit 1; }

version=$(sed -n '/<artifactId>shadowkv-parent/{n;s/.*<version>\(.*\)<\/version>.*/\1/p;q}' pom.xml)
junit=$(sed -n 's/.*<junit.version>\(.*\)<\/junit.version>.*/\1/p' pom.xml)
name=shadowkv-$version-linux-x86_64
stage=$root/dist/$name
log=$root/build/bundle.log

# The JDK that the launcher takes, since its class files and this runtime then agree.
jdk=$(SHADOWKV_PRINT_JAVA=1 ./shadowkv)
jdk=${jdk%/bin/java}
"$jdk/bin/jlink" --version >/dev/null || fail "$jdk has no jlink"

echo "Building ..."
mkdir -p build
mvn package -DskipTests "$@" \
  dependency:build-classpath -Dmdep.outputFile=target/test-classpath.txt -DincludeScope=test >"$log" 2>&1 ||
  { grep -m 5 ERROR "$log" >&2; fail "the build failed; see $log"; }
mvn -N dependency:copy -Dartifact=org.junit.platform:junit-platform-console-standalone:"$junit" \
  -DoutputDirectory=build/junit-console >>"$log" 2>&1 || fail "no JUnit console; see $log"

rm -rf "$stage"
mkdir -p "$stage"/{bin,lib,bench,tests/lib,native-tests/lib,models}

# --- Java runtime. Its modules are left uncompressed: the archive compresses them better as a whole. ---
"$jdk/bin/jlink" --output "$stage/runtime" --strip-java-debug-attributes --no-header-files --no-man-pages \
  --compress zip-0 --add-modules \
  java.base,java.logging,java.management,jdk.jfr,jdk.management,jdk.unsupported,jdk.zipfs
find "$stage/runtime" -name '*.so' -exec strip --strip-unneeded {} +
strip --strip-unneeded "$stage/runtime/bin/java"

# --- Libraries ---
copy_jars() {  # copy_jars <class path file> <folder> [<folder whose jars are not repeated>...]: jars of this class path
  local jar base folder
  tr ':' '\n' <"$1" | while read -r jar || [ -n "$jar" ]; do
    base=$(basename "$jar")
    [[ ! $base =~ $left_out ]] || continue
    for folder in "${@:2}"; do [ ! -f "$folder/$base" ] || continue 2; done
    case $jar in *.jar) cp "$jar" "$2/" ;; esac
  done
}
# repack <jar> <pattern...>: without the entries that match, most of them natives of other systems
repack() {
  local jar=$1 scratch; shift
  [ -f "$jar" ] || return 0
  scratch=$(mktemp -d)
  (cd "$scratch" && "$jdk/bin/jar" --extract --file "$jar" && for pattern in "$@"; do rm -rf $pattern; done &&
    "$jdk/bin/jar" --create --no-manifest --file "$jar" .)
  rm -rf "$scratch"
}
cp java/shadowkv-cli/target/shadowkv-cli-"$version".jar "$stage/lib/"
copy_jars java/shadowkv-cli/target/runtime-classpath.txt "$stage/lib"
for jar in "$stage"/lib/tokenizers-*.jar; do repack "$jar" 'native/lib/win-*' 'native/lib/osx-*' 'native/lib/linux-aarch64' nlp; done
for jar in "$stage"/lib/openblas-*-linux-x86_64.jar; do
  repack "$jar" 'org/bytedeco/openblas/linux-x86_64/libjni*' 'org/bytedeco/openblas/linux-x86_64/include' META-INF/versions
done
for jar in "$stage"/lib/jna-*.jar; do
  repack "$jar" 'com/sun/jna/[a-km-z]*-*' 'com/sun/jna/linux-[!x]*' 'com/sun/jna/linux-x86'
done

cp bench/target/shadowkv-bench-"$version".jar "$stage/bench/"
copy_jars bench/target/runtime-classpath.txt "$stage/bench" "$stage/lib"

# --- Tests ---
cp build/junit-console/*.jar "$stage/tests/lib/"
for module in shadowkv shadowkv-llm shadowkv-eval shadowkv-cli; do
  [ -d "java/$module/target/test-classes" ] || continue
  cp -r "java/$module/target/test-classes" "$stage/tests/$module"
  copy_jars "java/$module/target/test-classpath.txt" "$stage/tests/lib" "$stage/lib"
done
# The command line's tests look for checkpoints where the source tree has them.
mkdir -p "$stage/java/shadowkv-llm/src/test/resources"
ln -s ../../../../../tests/shadowkv-llm/golden "$stage/java/shadowkv-llm/src/test/resources/golden"
# In the console's jar already.
rm -f "$stage"/tests/lib/junit-jupiter*.jar "$stage"/tests/lib/junit-platform-{commons,engine,launcher}*.jar \
  "$stage"/tests/lib/opentest4j-*.jar "$stage"/tests/lib/apiguardian-*.jar "$stage"/tests/lib/jspecify-*.jar

# Without those that link the product's library: the JUnit tests load that one, out of its jar.
for test in $(find build/native/native/test -maxdepth 1 -type f -executable); do
  ldd "$test" | grep -q libshadowkv.so || cp "$test" "$stage/native-tests/"
done
cp build/native/native/libshadowkv_testing.so "$stage/native-tests/lib/"
for library in libstdc++.so.6 libgcc_s.so.1; do
  cp "$(ldd build/native/native/libshadowkv_testing.so | awk -v l="$library" '$1 == l {print $3}')" "$stage/native-tests/lib/"
done
find "$stage/native-tests" -type f -exec strip --strip-unneeded {} +

cp bench/throughput.sh "$stage/bench/"
cp -r models/needle-32k "$stage/models/"
cp LICENSE README.md "$stage/"
# Results of benchmarks name what they were measured on.
git describe --always --dirty --abbrev=12 >"$stage/commit" 2>/dev/null || echo unknown >"$stage/commit"

# --- Launchers ---
prologue='#!/bin/sh
set -eu
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
java="$here/runtime/bin/java"
options="-Xmx${SHADOWKV_HEAP:-2g} --enable-native-access=ALL-UNNAMED -Dai.djl.offline=true -Djava.awt.headless=true"
'
cat >"$stage/bin/shadowkv" <<EOF
$prologue
# The command line.
exec "\$java" \$options -XX:+UseSerialGC -Dshadowkv.home="\$here" \${SHADOWKV_JAVA_OPTIONS:-} \\
  -cp "\$here/lib/*" dev.shadowkv.cli.Main "\$@"
EOF
cat >"$stage/bin/shadowkv-tests" <<EOF
$prologue
# The JUnit tests but those that draw charts, which need java.desktop; SHADOWKV_TEST_DEVICE=cuda runs those that take
# either device on the GPU. Arguments go to the JUnit console: --include-classname='.*Rope.*', --details=tree, ...
echo "tests of either device run on: \${SHADOWKV_TEST_DEVICE:-cpu}"
folders=''
for folder in "\$here"/tests/shadowkv*; do folders="\$folders:\$folder"; done
exec "\$java" \$options -Xmx4g -Dshadowkv.root="\$here" -Dshadowkv.home="\$here" -Dshadowkv.test.device="\${SHADOWKV_TEST_DEVICE:-cpu}" \\
  \${SHADOWKV_JAVA_OPTIONS:-} -cp "\$here/tests/lib/*:\$here/lib/*\$folders" \\
  org.junit.platform.console.ConsoleLauncher execute --disable-banner --details=summary \\
  --exclude-classname=".*\\.Charts?[A-Za-z]*Test" --exclude-tag=charts --scan-class-path="\${folders#:}" "\$@"
EOF
cat >"$stage/bin/shadowkv-bench" <<EOF
$prologue
# The JMH benchmarks: quick, cpu-8b and gpu-8b are sets of them; other arguments are JMH's (-l lists them).
exec "\$java" \$options -Dshadowkv.home="\$here" \${SHADOWKV_JAVA_OPTIONS:-} -cp "\$here/bench/*:\$here/lib/*" \\
  dev.shadowkv.bench.Bench "\$@"
EOF
cat >"$stage/bin/shadowkv-native-tests" <<'EOF'
#!/bin/sh
# The native tests, or those named. Exit code 77 of one means that it needs a device which is not there.
# native-tests/bench_* are benchmarks, run by hand: LD_LIBRARY_PATH=native-tests/lib native-tests/bench_...
set -u
here=$(cd "$(dirname "$(readlink -f "$0")")/../native-tests" && pwd)
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[ $# -gt 0 ] || set -- $(cd "$here" && for test in *_test; do echo "$test"; done)
passed=0; failed=0; skipped=0
for name in "$@"; do
  "$here/$name"; status=$?
  case $status in
    0) passed=$((passed + 1)); echo "PASSED $name" ;;
    77) skipped=$((skipped + 1)); echo "SKIPPED $name" ;;
    *) failed=$((failed + 1)); echo "FAILED $name ($status)" ;;
  esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
EOF
cp bench/gpu-check.sh "$stage/bin/shadowkv-gpu-check"
chmod +x "$stage"/bin/*

tar -C dist --owner=0 --group=0 --sort=name -c "$name" | gzip -9 >"dist/$name.tar.gz"
size=$(stat -c %s "dist/$name.tar.gz")
echo "dist/$name.tar.gz: $((size / 1024 / 1024)) MiB, unpacked $(du -sm "$stage" | cut -f1) MiB"
[ "$size" -le "$limit" ] || fail "the archive is larger than $((limit / 1024 / 1024)) MiB"
