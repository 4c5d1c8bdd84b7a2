// Reads the names out of the public header and writes the program that states what the compiler makes of
// them. It knows the few forms in which the header is written and refuses everything else, so that a
// declaration cannot slip past it unnoticed.
#include <cstdio>
#include <exception>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string read_without_comments(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  const std::string source = text.str();
  std::string result;
  for (std::size_t i = 0; i < source.size();) {
    if (source.compare(i, 2, "/*") == 0) {
      const std::size_t end = source.find("*/", i + 2);
      i = end == std::string::npos ? source.size() : end + 2;
      result += ' ';
    } else if (source.compare(i, 2, "//") == 0) {
      i = source.find('\n', i);
      if (i == std::string::npos) i = source.size();
    } else {
      result += source[i++];
    }
  }
  return result;
}

// Takes preprocessor lines out; integers defined by the preprocessor become constants.
std::string without_directives(const std::string& text, std::vector<std::string>& constants) {
  static const std::regex integer(R"(#\s*define\s+(SKV_\w+)\s+\(?-?\d\w*\)?\s*)");
  std::istringstream lines(text);
  std::string line, result;
  while (std::getline(lines, line)) {
    if (const std::size_t first = line.find_first_not_of(" \t"); first != std::string::npos && line[first] == '#') {
      if (std::smatch match; std::regex_match(line, match, integer)) constants.push_back(match[1]);
      continue;
    }
    result += line + '\n';
  }
  return result;
}

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t\n");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  }
  return parts;
}

// Declarations at the top level: everything up to a ';' outside braces. The braces of extern "C" are not seen,
// since they belong to conditional sections that are taken out first.
std::vector<std::string> declarations(const std::string& text) {
  std::vector<std::string> result;
  std::string current;
  int depth = 0;
  for (const char c : text) {
    if (c == '{') ++depth;
    if (c == '}') --depth;
    if (c == ';' && depth == 0) {
      result.push_back(trimmed(current));
      current.clear();
    } else {
      current += c;
    }
  }
  if (!trimmed(current).empty()) result.push_back(trimmed(current));
  return result;
}

int generate(int count, char** arguments) {
  std::vector<std::string> constants, structs, types, functions;
  std::vector<std::pair<std::string, std::string>> fields;
  const std::regex extern_c(R"(#\s*ifdef\s+__cplusplus[\s\S]*?#\s*endif)");
  const std::regex enumeration(R"((?:typedef\s+)?enum\s*\w*\s*\{([\s\S]*)\}\s*\w*)");
  const std::regex structure(R"(typedef\s+struct\s+(\w+)\s*\{([\s\S]*)\}\s*(\w+))");
  const std::regex opaque(R"(typedef\s+struct\s+(\w+)\s+(\w+))");
  const std::regex alias(R"(typedef\s+\w+\s+(\w+))");
  const std::regex function(R"(SKV_API\s+[\w\s\*]*?(\w+)\s*\([\s\S]*\))");
  const std::regex last_name(R"([\s\S]*?(\w+)\s*(?:\[[^\]]*\]\s*)*)");

  for (int i = 1; i < count; ++i) {
    const std::string text =
        without_directives(std::regex_replace(read_without_comments(arguments[i]), extern_c, ""), constants);
    for (const std::string& declaration : declarations(text)) {
      std::smatch match;
      if (std::regex_match(declaration, match, structure)) {
        structs.push_back(match[3]);
        for (const std::string& field : split(match[2], ';')) {
          for (const std::string& declarator : split(field, ',')) {
            std::smatch name;
            if (!std::regex_match(declarator, name, last_name)) {
              std::fprintf(stderr, "%s: field not understood: %s\n", arguments[i], field.c_str());
              return 1;
            }
            fields.emplace_back(structs.back(), name[1]);
          }
        }
      } else if (std::regex_match(declaration, match, enumeration)) {
        for (const std::string& constant : split(match[1], ',')) {
          constants.push_back(trimmed(constant.substr(0, constant.find('='))));
        }
      } else if (std::regex_match(declaration, match, function)) {
        functions.push_back(match[1]);
      } else if (std::regex_match(declaration, match, opaque)) {
        // A handle: it crosses as an address.
      } else if (std::regex_match(declaration, match, alias)) {
        types.push_back(match[1]);
      } else {
        std::fprintf(stderr, "%s: declaration not understood: %s\n", arguments[i], declaration.c_str());
        return 1;
      }
    }
  }
  if (constants.empty() || structs.empty() || functions.empty()) {
    std::fprintf(stderr, "the header gave no constants, no structs or no functions\n");
    return 1;
  }

  std::printf("#include \"facts.h\"\n\n");
  for (const std::string& name : structs) {
    std::printf("template <>\nstruct StructName<%s> {\n  static constexpr const char* value = \"%s\";\n};\n",
                name.c_str(), name.c_str());
  }
  std::printf("\nint main() {\n");
  for (const std::string& name : constants) std::printf("  CONSTANT_FACT(%s);\n", name.c_str());
  for (const std::string& name : types) std::printf("  TYPE_FACT(%s);\n", name.c_str());
  for (const std::string& name : structs) std::printf("  STRUCT_FACT(%s);\n", name.c_str());
  for (const auto& [type, field] : fields) std::printf("  FIELD_FACT(%s, %s);\n", type.c_str(), field.c_str());
  for (const std::string& name : functions) std::printf("  FUNCTION_FACT(%s);\n", name.c_str());
  std::printf("}\n");
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return generate(count, arguments);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
