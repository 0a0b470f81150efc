/** What is asked. Keys and identities are 64 hexadecimal digits and must come by another way than the file. */
export interface Request {
  /** The proof file, as it is. */
  file: string;
  publishers: string[];
  database: string;
  /** The key that the proof must be about. */
  key?: string;
  /** The fewest operations that the state must have. */
  min_size?: number;
  /** The longest time since the state was signed, in seconds; needs `now_ms`. */
  max_age_seconds?: number;
  /** The present time, milliseconds since 1970. */
  now_ms?: number;
}

/** What was proved. */
export interface Proved {
  proved: true;
  statement: "value" | "absent" | "operation";
  /** All of it in a sentence. */
  text: string;
  key_b64?: string;
  value_b64?: string;
  location?: number;
  database: string;
  size: number;
  root: string;
  /** Milliseconds since 1970. */
  committed_at: number;
  signed_at: number;
  publisher: string;
}

/** Why nothing is proved, or not what was asked for. */
export interface Failed {
  proved: false;
  error: string;
}

export interface Verifier {
  verify(request: Request): Proved | Failed;
}

/** Loads the module from its bytes (`syncd-verify.wasm`). */
export function load(module: BufferSource): Promise<Verifier>;
