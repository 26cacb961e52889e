#include "files.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

#include "fault.hpp"

namespace fs = std::filesystem;

namespace {

class Hash {
 public:
  Hash() { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }

  void update(const char* bytes, std::size_t count) { EVP_DigestUpdate(context_.get(), bytes, count); }

  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    EVP_DigestFinal_ex(context_.get(), digest.data(), &length);
    std::string text;
    for (unsigned int i = 0; i < length; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(), EVP_MD_CTX_free};
};

std::ifstream opened(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream || fs::is_directory(path)) throw Fault({"cannot be read", path.string(), "", "a file"});
  return stream;
}

// The sha256 of a file that is read in pieces, and copied on the way if there is a place for the copy.
std::string sha256_of_file(const fs::path& path, const fs::path& copy) {
  auto stream = opened(path);
  std::ofstream copied;
  if (!copy.empty()) copied.open(copy, std::ios::binary);
  Hash hash;
  std::array<char, 1 << 16> buffer{};
  while (stream.read(buffer.data(), buffer.size()) || stream.gcount() > 0) {
    hash.update(buffer.data(), static_cast<std::size_t>(stream.gcount()));
    if (!copy.empty()) copied.write(buffer.data(), stream.gcount());
  }
  if (!copy.empty()) copied.close();
  if (!copied) {
    throw Fault({"there is no room for a private copy of what runs", copy.string(), "", "",
                 "set the variable TMPDIR to a folder with room"});
  }
  return hash.hex();
}

bool is_inside(const fs::path& path, const fs::path& folder) {
  const auto relative = fs::relative(fs::canonical(path), fs::canonical(folder));
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

std::string read_file(const fs::path& path) {
  std::ostringstream text;
  text << opened(path).rdbuf();
  return text.str();
}

std::string sha256(const std::string& bytes) {
  Hash hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

fs::path inside(const fs::path& folder, const std::string& path) {
  bool good = !path.empty() && path.find_first_of("\\:") == std::string::npos && path.back() != '/' &&
              std::none_of(path.begin(), path.end(), [](unsigned char sign) { return std::iscntrl(sign); });
  std::istringstream parts(path);
  for (std::string part; std::getline(parts, part, '/');) good = good && !part.empty() && part != "." && part != "..";
  if (!good) {
    throw Fault({"a path that may leave its folder", (folder / "manifest.json").string(), "`" + path + "`",
                 "a relative path without `.`, `..`, `:` and `\\`"});
  }
  return folder / path;
}

void check_inside(const fs::path& folder, const fs::path& file) {
  if (!fs::is_regular_file(file)) {
    throw Fault({"is missing from the bundle", file.string(), "", "a file", "copy the whole bundle again"});
  }
  if (!is_inside(file, folder)) {
    throw Fault({"is a link to a file outside the bundle", file.string(), fs::canonical(file).string(),
                 "a file in " + folder.string(), "replace the link by the file"});
  }
}

void verify_file(const fs::path& folder, const std::string& path, std::uintmax_t bytes, const std::string& hash,
                 const fs::path& copy) {
  const auto file = inside(folder, path);
  check_inside(folder, file);
  if (fs::file_size(file) != bytes) {
    throw Fault({"does not match its recorded size", file.string(),
                 std::to_string(fs::file_size(file)) + " bytes", std::to_string(bytes) + " bytes",
                 "get the file from its source again"});
  }
  const auto found = sha256_of_file(file, copy);
  if (found != hash) {
    throw Fault({"has been changed or damaged since it was written", file.string(), "sha256 " + found,
                 "sha256 " + hash, "get the file from its source again"});
  }
}

PrivateFolder::PrivateFolder() {
  const fs::path disk = "/var/tmp";
  const auto parent = std::getenv("TMPDIR") == nullptr && fs::is_directory(disk) ? disk : fs::temp_directory_path();
  auto name = (parent / "adapter-bundle-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) {
    throw Fault({"there is no place for a private copy of what runs", parent.string(), "", "",
                 "set the variable TMPDIR to a folder with room"});
  }
  path_ = name;
}

PrivateFolder::~PrivateFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}
