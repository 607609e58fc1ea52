// Decodes Sparkplug B payloads, one a line in base64, with the package sparkplug-payload, whose
// folder is the first argument. Each answer has the message's fields as they are, and the payload
// as the package gives it to a host (which knows a value by its datatype, so from births only).
const folder = process.argv[2] + "/node_modules/sparkplug-payload";
const { get } = require(folder);
const { Payload } = require(folder + "/lib/sparkplugPayloadProto").org.eclipse.tahu.protobuf;
const plain = (_key, value) =>
  value && typeof value === "object" && typeof value.toNumber === "function"
    ? value.toNumber()
    : value;
for (const line of require("fs").readFileSync(0, "utf8").trim().split("\n")) {
  const raw = Buffer.from(line, "base64");
  const fields = Payload.toObject(Payload.decode(raw), { longs: Number });
  console.log(JSON.stringify({ fields, host: get("spBv1.0").decodePayload(raw) }, plain));
}
