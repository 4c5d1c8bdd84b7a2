package dev.shadowkv.internal.ffi;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.internal.NativeLibrary;
import java.io.IOException;
import java.lang.foreign.AddressLayout;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.GroupLayout;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.PaddingLayout;
import java.lang.foreign.SequenceLayout;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Method;
import java.net.URI;
import java.net.URISyntaxException;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/**
 * The committed bindings and the header say the same. The header's side is what the C compiler made of it in this
 * very build, so that a change of the header without new bindings fails here.
 */
class BindingsTest {

    private static final String DESCRIPTOR = "$descriptor";

    private final AbiFacts facts = AbiFacts.read();

    @Test
    void constants() throws ReflectiveOperationException {
        Map<String, Long> bound = new TreeMap<>();
        for (Method method : ShadowKv.class.getDeclaredMethods()) {
            if (method.getName().startsWith("SKV_") && method.getParameterCount() == 0) {
                bound.put(method.getName(), ((Number) method.invoke(null)).longValue());
            }
        }
        assertThat(bound).containsExactlyInAnyOrderEntriesOf(facts.constants());
    }

    @Test
    void types() {
        assertThat(facts.types()).containsExactly(Map.entry("skv_status", typeOf(ShadowKv.skv_status)));
    }

    @Test
    void structsAreTheSame() throws IOException, URISyntaxException {
        assertThat(boundStructs()).containsExactlyInAnyOrderElementsOf(facts.structs().keySet());
    }

    @TestFactory
    Stream<DynamicTest> structLayout() {
        return facts.structs().entrySet().stream()
                .map(struct -> DynamicTest.dynamicTest(struct.getKey(), () -> checkStruct(struct.getKey(), struct.getValue())));
    }

    private static void checkStruct(String name, AbiFacts.Struct expected) throws ReflectiveOperationException {
        Class<?> type = Class.forName(ShadowKv.class.getPackageName() + "." + name);
        GroupLayout layout = (GroupLayout) type.getMethod("layout").invoke(null);
        assertThat(layout.byteSize()).as("size").isEqualTo(expected.size());
        assertThat(layout.byteAlignment()).as("alignment").isEqualTo(expected.alignment());
        List<AbiFacts.Field> bound = new ArrayList<>();
        for (MemoryLayout member : layout.memberLayouts()) {
            if (member instanceof PaddingLayout) {
                continue;
            }
            String field = member.name().orElseThrow();
            long offset = layout.byteOffset(MemoryLayout.PathElement.groupElement(field));
            assertThat(type.getMethod(field + "$offset").invoke(null)).as("offset of the accessors of " + field).isEqualTo(offset);
            bound.add(new AbiFacts.Field(field, offset, member.byteSize(), typeOf(member)));
        }
        assertThat(bound).as("fields").containsExactlyElementsOf(expected.fields());
    }

    @Test
    void functions() throws ReflectiveOperationException {
        Map<String, List<String>> bound = new TreeMap<>();
        for (Method method : ShadowKv.class.getDeclaredMethods()) {
            if (method.getName().endsWith(DESCRIPTOR)) {
                String name = method.getName().substring(0, method.getName().length() - DESCRIPTOR.length());
                bound.put(name, signatureOf((FunctionDescriptor) method.invoke(null)));
            }
        }
        assertThat(bound).containsExactlyInAnyOrderEntriesOf(facts.functions());
    }

    @Test
    void everyFunctionIsInTheLibrary() {
        assertThat(facts.functions().keySet()).isNotEmpty()
                .allSatisfy(function -> assertThat(NativeLibrary.symbols().find(function)).as(function).isPresent());
    }

    @Test
    void versionOfLibraryAndBindings() {
        assertThat(ShadowKv.skv_abi_version()).isEqualTo(ShadowKv.SKV_ABI_VERSION());
    }

    private static List<String> signatureOf(FunctionDescriptor descriptor) {
        List<String> signature = new ArrayList<>();
        signature.add(descriptor.returnLayout().map(BindingsTest::typeOf).orElse("void"));
        descriptor.argumentLayouts().forEach(argument -> signature.add(typeOf(argument)));
        return signature;
    }

    private static String typeOf(MemoryLayout layout) {
        return switch (layout) {
            case AddressLayout _ -> "pointer";
            case ValueLayout.OfFloat _ -> "float32";
            case ValueLayout.OfDouble _ -> "float64";
            case ValueLayout value -> "int" + 8 * value.byteSize();
            case SequenceLayout array -> typeOf(array.elementLayout()) + "[" + array.elementCount() + "]";
            // A nested struct is a copy of another class's layout, which has its own name first; the field renames it.
            case GroupLayout group -> structOf(group);
            case PaddingLayout padding -> throw new IllegalArgumentException("padding is no type: " + padding);
        };
    }

    private static String structOf(GroupLayout group) {
        try {
            for (String name : boundStructs()) {
                Class<?> type = Class.forName(ShadowKv.class.getPackageName() + "." + name);
                if (((GroupLayout) type.getMethod("layout").invoke(null)).withoutName().equals(group.withoutName())) {
                    return name;
                }
            }
        } catch (ReflectiveOperationException | IOException | URISyntaxException e) {
            throw new IllegalStateException(e);
        }
        throw new IllegalStateException("no bound struct has the layout " + group);
    }

    /** The struct classes of the bindings, from the folder or jar that they were loaded from. */
    private static List<String> boundStructs() throws IOException, URISyntaxException {
        URI location = ShadowKv.class.getResource("ShadowKv.class").toURI();
        if (location.getScheme().equals("jar")) {
            try (FileSystem jar = FileSystems.newFileSystem(location, Map.of())) {
                return structsIn(jar.provider().getPath(location).getParent());
            }
        }
        return structsIn(Path.of(location).getParent());
    }

    private static List<String> structsIn(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(file -> file.getFileName().toString())
                    .filter(name -> name.startsWith("skv_") && name.endsWith(".class") && !name.contains("$"))
                    .map(name -> name.substring(0, name.length() - ".class".length()))
                    .sorted()
                    .collect(Collectors.toList());
        }
    }
}
