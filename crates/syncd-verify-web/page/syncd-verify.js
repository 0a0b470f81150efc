// Verifies syncd's proof files. See syncd-verify.d.ts.
export async function load(module) {
  const { instance } = await WebAssembly.instantiate(module, {});
  const { memory, input, run, output, output_length } = instance.exports;
  return {
    verify(request) {
      const bytes = new TextEncoder().encode(JSON.stringify(request));
      // Memory that grows has another buffer: it is looked up after each call.
      const at = input(bytes.length);
      new Uint8Array(memory.buffer, at, bytes.length).set(bytes);
      run();
      const [from, length] = [output(), output_length()];
      const answer = new Uint8Array(memory.buffer, from, length);
      return JSON.parse(new TextDecoder().decode(answer));
    },
  };
}
