// Files of a bundle: read whole, held against their hashes, never outside the bundle's folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

// The bytes of a file. Throws Fault if it cannot be read.
std::string read_file(const std::filesystem::path& path);

// The sha256 of some bytes, as 64 lower-case hexadecimal digits.
std::string sha256(const std::string& bytes);

// A path of the manifest in its folder. Throws Fault if it may leave it: `..`, `.`, an absolute path, `\`, `:`.
std::filesystem::path inside(const std::filesystem::path& folder, const std::string& path);

// Throws Fault if a file is missing, is a folder or a pipe, or is a link out of the folder.
void check_inside(const std::filesystem::path& folder, const std::filesystem::path& file);

// Hold a file against its size and hash; with `copy`, what is hashed is what is written there. Throws Fault if it is
// missing, is a link out of the folder, or differs, or the copy cannot be written.
void verify_file(const std::filesystem::path& folder, const std::string& path, std::uintmax_t bytes,
                 const std::string& hash, const std::filesystem::path& copy = {});

// A temporary folder of this process alone, removed with the object: in TMPDIR, else on the disk, in /var/tmp.
class PrivateFolder {
 public:
  PrivateFolder();
  ~PrivateFolder();
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};
