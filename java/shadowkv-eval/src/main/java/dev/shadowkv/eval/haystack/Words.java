package dev.shadowkv.eval.haystack;

import dev.shadowkv.eval.EvaluationException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/** English words for keys and lists: some hundreds built in, or those of a file. Immutable. */
public final class Words {
    private static final List<String> ADJECTIVES = split(
            """
            able abrupt absent acidic active agile alert aloof amber ample ancient angry ashen awake bald bare basic \
            bitter blank bleak blind blunt bold brave brief bright brisk broad brown bulky busy calm candid careful \
            cheap chilly civil clean clear clever cold common complex cool coral crisp crooked cruel curly daily damp \
            dark dear deep dense dim distant dizzy double dreary dry dull dusty eager early earnest easy elder elegant \
            empty equal even exact faint fair false famous fancy fast feeble few fierce final firm fixed flat foggy fond \
            formal fragile frank free fresh frosty full funny gentle giant glad gloomy golden good grand grave gray \
            greedy green grim happy hard harsh hasty heavy hidden high hollow honest huge humble hungry icy ideal idle \
            inner ivory jolly keen kind large late lazy lean light limp little lively local lonely long loose loud low \
            loyal lucky major marble mellow mild minor misty modern modest moist muddy narrow neat new noble noisy \
            normal odd old open orange outer pale patient plain pleasant polite poor precise pretty private proud pure \
            quick quiet rapid rare raw ready real red regal rich rigid ripe rough round royal rude rural rusty sad safe \
            salty sandy scarce secret severe shallow sharp shiny short shy silent silver simple slim slow small smart \
            smooth sober soft solid sour spare special steady steep stern stiff strange strict strong subtle sudden \
            sunny sure sweet swift tall tame tender thick thin tidy tiny tired tough true usual vague vain vast violet \
            vivid warm weak weary wet white whole wide wild windy wise wooden young""");

    private static final List<String> NOUNS = split(
            """
            acorn actor airport album alley anchor ankle anvil apple apron arch arena arm arrow atlas attic aunt axe \
            badge bag baker balcony ball banana band bank barn barrel basin basket bay beach bead beam bean bear beard \
            bed bee bell belt bench berry bicycle bird blanket blossom board boat bone book boot bottle bowl box branch \
            bread breeze brick bridge broom brush bucket bull bus bush butter button cabin cable cage cake calendar camel \
            camera camp canal candle canoe canvas cap captain card carpet carrot cart castle cat cave cellar chain chair \
            chalk cheese cherry chest chin church circle circus city clay clerk cliff clock cloth cloud coach coat coffee \
            coin collar comet compass cook copper cork corn corner cottage cotton couch cousin cow crab cradle crane crate \
            creek crow crown cup curtain cushion daisy dancer deer desert desk diary dish doctor dog doll donkey door dove \
            dragon drawer dress drum duck eagle ear earth echo elbow engine envelope eye fabric face farm feather fence \
            fern field fig finger fire fish flag flame flute fog forest fork fountain fox frame frog fruit garden gate \
            ghost giraffe glass glove goat goose grape grass guitar hall hammer hand harbor harp hat hawk hay heart hedge \
            helmet hen hill honey hook horn horse hotel house ink island jacket jar jewel judge jug juice kettle key king \
            kitchen kite knee knife ladder lake lamp lawn leaf lemon lens letter library lion lock log magnet mango map \
            market mask meadow melon mill mirror monkey moon moth mountain mouse museum nail napkin needle nest nurse nut \
            oak ocean office onion orchard oven owl paddle palace paper parade park parrot path peach pear pearl pebble \
            pencil pepper piano picture pigeon pillow pilot pine pipe plate plum pocket poet pond pony porch potato pump \
            puppy quilt rabbit radio rain raven ribbon rice ring river road robin rock roof root rope rose ruler saddle \
            sail salt sand saw scarf school scissors sea seed shadow sheep shelf shell ship shirt shoe shoulder shovel silk \
            singer sister sky sled snail snow soap sock soup spider spoon spring squirrel stable stair star station stone \
            stove straw street string sugar sun swan table tailor teacher tent thread thumb tiger toast tower town toy \
            train tree truck trumpet tulip tunnel turtle uncle valley vase village vine violin wagon wall walnut water \
            wave wheat wheel whistle willow window wing winter wolf yard zebra""");

    private static final List<String> VERBS = split(
            """
            accept adapt admire agree allow answer appear argue arrive bake bathe begin behave believe bend blink boil \
            borrow bounce build carry carve catch chase choose climb collect compare consider count cover crawl create \
            dance decide deliver describe discover divide draw dream drift drink earn enjoy enter explain explore fetch \
            fold follow forget gather glide grow guess hide hold hope hurry imagine improve include invent invite join \
            jump kneel knit laugh learn listen lift melt mend move notice obey observe offer order paint pause perform \
            plant play polish pour practice prefer prepare press promise protect pull push reach recall repair repeat \
            reply rescue return roll row scatter search serve share shout sing skip sleep smile sneeze solve spin stretch \
            study surround swim teach tell think throw travel trust turn unfold vanish visit wait wander watch whisper \
            wonder work write yawn""");

    private final List<String> single;
    private final List<String> keys;

    private Words(List<String> single, List<String> keys) {
        this.single = single;
        this.keys = keys;
    }

    private static List<String> split(String text) {
        return List.of(text.strip().split("\\s+"));
    }

    /** The built-in words; keys are made of an adjective and a noun with a hyphen between. */
    public static Words english() {
        List<String> single = new ArrayList<>(NOUNS);
        single.addAll(ADJECTIVES);
        single.addAll(VERBS);
        List<String> keys = new ArrayList<>(ADJECTIVES.size() * NOUNS.size());
        ADJECTIVES.forEach(adjective -> NOUNS.forEach(noun -> keys.add(adjective + "-" + noun)));
        return new Words(List.copyOf(new java.util.LinkedHashSet<>(single)), List.copyOf(keys));
    }

    /**
     * Words of a file, one a line, used for lists and keys alike.
     *
     * @throws EvaluationException when the file cannot be read or has fewer than 100 words
     */
    public static Words read(Path path) {
        try {
            List<String> words = Files.readAllLines(path).stream()
                    .map(String::strip)
                    .filter(word -> !word.isEmpty())
                    .distinct()
                    .toList();
            if (words.size() < 100) {
                throw new EvaluationException(path + ": has " + words.size() + " words, at least 100 are needed");
            }
            return new Words(words, words);
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be read: " + e.getMessage(), e);
        }
    }

    /** A word to name something by. */
    public String key(SplittableRandom random) {
        return keys.get(random.nextInt(keys.size()));
    }

    /**
     * Different words in random order: single ones while they suffice, otherwise from the larger list of keys.
     *
     * @throws EvaluationException when there are not so many
     */
    public List<String> distinct(int count, SplittableRandom random) {
        List<String> source = count <= single.size() ? single : keys;
        if (count > source.size()) {
            throw new EvaluationException(
                    count + " different words are needed, there are " + source.size() + "; give a longer list of words");
        }
        return Draw.distinct(source, count, random);
    }

    String adjective(SplittableRandom random) {
        return ADJECTIVES.get(random.nextInt(ADJECTIVES.size()));
    }

    String noun(SplittableRandom random) {
        return NOUNS.get(random.nextInt(NOUNS.size()));
    }

    String verb(SplittableRandom random) {
        return VERBS.get(random.nextInt(VERBS.size()));
    }
}
