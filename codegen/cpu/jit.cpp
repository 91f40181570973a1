#include "codegen/cpu/jit.h"

#include <fmt/format.h>
#include <llvm/ExecutionEngine/Orc/Debugging/DebuggerSupport.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/IR/LLVMContext.h>
#include <llvm/IR/LegacyPassManager.h>
#include <llvm/IR/Module.h>
#include <llvm/IR/OptBisect.h>
#include <llvm/IR/Verifier.h>
#include <llvm/MC/TargetRegistry.h>
#include <llvm/Object/ELFObjectFile.h>
#include <llvm/Support/SmallVectorMemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>
#include <llvm/Support/raw_ostream.h>
#include <llvm/Target/TargetMachine.h>
#include <llvm/Target/TargetOptions.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "codegen/cpu/code_version.h"
#include "codegen/cpu/emit.h"
#include "codegen/cpu/object_cache.h"
#include "support/error.h"
#include "support/hash.h"

namespace moec {
using namespace llvm;

namespace {

constexpr const char* kTriple = "x86_64-unknown-linux-gnu";

template <class T>
T take(Expected<T> v, const char* what) {
  if (!v) internal_error(__FILE__, __LINE__, what, toString(v.takeError()));
  return std::move(*v);
}
void take(Error e, const char* what) {
  if (e) internal_error(__FILE__, __LINE__, what, toString(std::move(e)));
}

void init_llvm() {
  static std::once_flag once;
  std::call_once(once, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeX86AsmParser();
  });
}

std::unique_ptr<TargetMachine> make_machine(const Target& t) {
  std::string why;
  const auto* target = TargetRegistry::lookupTarget(kTriple, why);
  if (!target)
    internal_error(__FILE__, __LINE__, "LLVM has no X86 target", why);
  TargetOptions options;
  // Less loses nothing on kernels written in vector form (notes: -9 % time)
  return std::unique_ptr<TargetMachine>(target->createTargetMachine(
      kTriple, t.cpu, t.features, options, Reloc::PIC_, CodeModel::Small,
      CodeGenOptLevel::Less, /*JIT=*/true));
}

// Runs every pass but, for long loops, the one that tunes addresses in them: it
// takes a quarter of the time of a kernel with split products.
struct PassGate : OptPassGate {
  bool long_loops = false;
  bool isEnabled() const override { return long_loops; }
  bool shouldRunPass(StringRef pass, StringRef) override {
    return pass != "Loop Strength Reduction";
  }
};

// Writes kernels' code, one after the other: setting up LLVM's passes costs as
// much as a small kernel. Not thread-safe.
class Compiler {
 public:
  Compiler(const Target& t, CodeGenFileType type)
      : target_(t), machine_(make_machine(t)) {
    context_.setOptPassGate(gate_);
    if (machine_->addPassesToEmitFile(passes_, stream_, nullptr, type))
      internal_error(__FILE__, __LINE__, "no object emission", "");
  }

  std::unique_ptr<Module> build(const KernelSpec& spec,
                                const std::string& symbol) {
    auto m = std::make_unique<Module>(symbol, context_);
    m->setTargetTriple(kTriple);
    m->setDataLayout(machine_->createDataLayout());
    Emit e(*m, target_, symbol);
    spec.emit(e);
    e.finish();
    gate_.long_loops = e.long_loops();
    std::string why;
    raw_string_ostream os(why);
    if (verifyModule(*m, &os))
      internal_error(__FILE__, __LINE__, "kernel IR does not verify",
                     spec.key + ": " + why);
    return m;
  }

  std::string code(Module& m) {
    out_.clear();
    passes_.run(m);
    return std::string(out_.data(), out_.size());
  }

 private:
  const Target& target_;
  PassGate gate_;
  LLVMContext context_;
  std::unique_ptr<TargetMachine> machine_;
  SmallVector<char, 0> out_;
  raw_svector_ostream stream_{out_};
  legacy::PassManager passes_;
};

// All functions of a kernel's object, of which `symbol` lies at `address`, into
// /tmp/perf-PID.map, which `perf report` reads by itself.
void write_perf_map(const std::string& object, const std::string& symbol,
                    uint64_t address) {
  auto buffer = MemoryBuffer::getMemBuffer(object, symbol, false);
  auto file = take(object::ObjectFile::createELFObjectFile(*buffer), "object");
  struct Function {
    std::string name;
    uint64_t at, bytes;
  };
  std::vector<Function> functions;
  uint64_t start = 0;
  for (const object::ELFSymbolRef s : file->symbols()) {
    if (take(s.getType(), "symbol") != object::SymbolRef::ST_Function) continue;
    functions.push_back({take(s.getName(), "symbol").str(),
                         take(s.getAddress(), "symbol"), s.getSize()});
    if (functions.back().name == symbol) start = functions.back().at;
  }
  std::string path = fmt::format("/tmp/perf-{}.map", ::getpid());
  if (FILE* f = std::fopen(path.c_str(), "a")) {
    for (const Function& g : functions)
      fmt::print(f, "{:x} {:x} {}\n", address - start + g.at, g.bytes, g.name);
    std::fclose(f);
  }
}

bool env_flag(const char* name) {
  const char* v = std::getenv(name);
  return v && *v && std::string_view(v) != "0";
}

}  // namespace

struct KernelLibrary::Impl {
  Impl(const Target& t, std::string dir) : target(t), cache(std::move(dir)) {
    init_llvm();
  }

  // Full text of a cache entry's identity.
  std::string cache_key(const KernelSpec& s) const {
    return fmt::format("{}\n{}\nllvm {}\ncode {}\n", s.key, target.id(),
                       LLVM_VERSION_STRING, kCodeVersion);
  }
  std::string symbol(const KernelSpec& s) const;
  std::string compile(Compiler&, const KernelSpec&) const;
  void link(const std::vector<std::string>& objects,
            const std::vector<std::string>& symbols,
            std::vector<KernelFn>& out);

  const Target target;
  const ObjectCache cache;
  std::mutex mutex;
  std::unordered_map<std::string, KernelFn> known;  // by key
  std::unique_ptr<orc::LLJIT> lljit;
};

std::string KernelLibrary::Impl::symbol(const KernelSpec& s) const {
  std::string name;
  for (char c : s.key) {
    if (name.size() == 48) break;
    name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  }
  return name + "_" + hash_text(s.key).hex().substr(0, 16);
}

std::string KernelLibrary::Impl::compile(Compiler& compiler,
                                         const KernelSpec& spec) const {
  auto m = compiler.build(spec, symbol(spec));
  std::string object = compiler.code(*m);
  cache.save(cache_key(spec), object);
  return object;
}

void KernelLibrary::Impl::link(const std::vector<std::string>& objects,
                               const std::vector<std::string>& symbols,
                               std::vector<KernelFn>& out) {
  using namespace orc;
  if (!lljit) {
    JITTargetMachineBuilder b{Triple(kTriple)};
    b.setCPU(target.cpu);
    lljit = take(LLJITBuilder().setJITTargetMachineBuilder(b).create(),
                 "JIT start");
    // memset and the like, should codegen call them
    lljit->getMainJITDylib().addGenerator(
        take(DynamicLibrarySearchGenerator::GetForCurrentProcess(
                 lljit->getDataLayout().getGlobalPrefix()),
             "process symbols"));
    if (env_flag("MOEC_GDB")) take(enableDebuggerSupport(*lljit), "gdb");
  }
  SymbolLookupSet set;
  for (size_t i = 0; i < objects.size(); ++i) {
    take(lljit->addObjectFile(
             MemoryBuffer::getMemBufferCopy(objects[i], symbols[i])),
         "object");
    set.add(lljit->mangleAndIntern(symbols[i]));
  }
  // one lookup for all: each by itself costs a round of the linker's tasks
  auto found = take(
      lljit->getExecutionSession().lookup(
          makeJITDylibSearchOrder(&lljit->getMainJITDylib()), std::move(set)),
      "link");
  const bool perf = env_flag("MOEC_PERF");
  for (size_t i = 0; i < symbols.size(); ++i) {
    auto address = found[lljit->mangleAndIntern(symbols[i])].getAddress();
    out.push_back(address.toPtr<KernelFn>());
    if (perf) write_perf_map(objects[i], symbols[i], address.getValue());
  }
}

KernelLibrary::KernelLibrary(const Target& t, std::string cache_dir)
    : p_(std::make_unique<Impl>(t, std::move(cache_dir))) {}

KernelLibrary::KernelLibrary(const Target& t)
    : KernelLibrary(t, default_cache_dir()) {}

KernelLibrary::~KernelLibrary() = default;

const Target& KernelLibrary::target() const { return p_->target; }

std::vector<KernelFn> KernelLibrary::get(std::span<const KernelSpec> specs,
                                         CompileStats* stats) {
  auto start = std::chrono::steady_clock::now();
  std::lock_guard lock(p_->mutex);
  std::vector<const KernelSpec*> fresh;
  for (const KernelSpec& s : specs)
    if (p_->known.emplace(s.key, nullptr).second) fresh.push_back(&s);

  const size_t n = fresh.size();
  std::vector<std::string> objects(n), symbols(n);
  std::vector<size_t> missing;
  for (size_t i = 0; i < n; ++i) {
    symbols[i] = p_->symbol(*fresh[i]);
    if (auto hit = p_->cache.load(p_->cache_key(*fresh[i])))
      objects[i] = std::move(*hit);
    else
      missing.push_back(i);
  }

  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&] {
    try {
      Compiler compiler(p_->target, CodeGenFileType::ObjectFile);
      for (size_t k; (k = next++) < missing.size();)
        objects[missing[k]] = p_->compile(compiler, *fresh[missing[k]]);
    } catch (...) {
      std::lock_guard guard(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  const size_t threads =
      std::min<size_t>({std::max(1u, std::thread::hardware_concurrency()), 16,
                        (missing.size() + 1) / 2});
  std::vector<std::thread> pool;
  for (size_t t = 1; t < threads; ++t) pool.emplace_back(work);
  if (!missing.empty()) work();
  for (auto& t : pool) t.join();
  if (error) {
    for (const KernelSpec* s : fresh) p_->known.erase(s->key);
    std::rethrow_exception(error);
  }

  std::vector<KernelFn> linked;
  if (n) p_->link(objects, symbols, linked);
  for (size_t i = 0; i < n; ++i) p_->known[fresh[i]->key] = linked[i];
  std::vector<KernelFn> out;
  for (const KernelSpec& s : specs) out.push_back(p_->known.at(s.key));
  if (stats) {
    stats->kernels += static_cast<int>(n);
    stats->compiled += static_cast<int>(missing.size());
    stats->seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
            .count();
  }
  return out;
}

KernelFn KernelLibrary::get(const KernelSpec& s) { return get({&s, 1})[0]; }

std::string KernelLibrary::symbol(const KernelSpec& s) const {
  return p_->symbol(s);
}

std::string KernelLibrary::llvm_ir(const KernelSpec& s) const {
  Compiler compiler(p_->target, CodeGenFileType::Null);
  std::string text;
  raw_string_ostream(text) << *compiler.build(s, p_->symbol(s));
  return text;
}

std::string KernelLibrary::assembly(const KernelSpec& s) const {
  Compiler compiler(p_->target, CodeGenFileType::AssemblyFile);
  return compiler.code(*compiler.build(s, p_->symbol(s)));
}

std::string default_cache_dir() {
  auto env = [](const char* name) {
    const char* v = std::getenv(name);
    return std::string(v ? v : "");
  };
  if (auto d = env("MOEC_CACHE_DIR"); !d.empty()) return d;
  if (auto d = env("XDG_CACHE_HOME"); !d.empty()) return d + "/moec";
  if (auto d = env("HOME"); !d.empty()) return d + "/.cache/moec";
  return "";
}

}  // namespace moec
