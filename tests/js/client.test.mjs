// The official JavaScript client against a running server. LONGMEM_URL says where it is.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.LONGMEM_URL}/v1`,
  apiKey: process.env.LONGMEM_KEY,
  maxRetries: 0,
});
const model = "nano";
const tool = {
  type: "function",
  name: "weather",
  description: "The weather of a place.",
  parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  strict: false,
};
const user = (content) => ({ role: "user", content });

async function refused(promise, status, code) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof OpenAI.APIError, String(error));
    assert.deepEqual([error.status, error.code], [status, code]);
    return true;
  });
}

async function collect(iterable) {
  const found = [];
  for await (const each of iterable) found.push(each);
  return found;
}

test("chat completions remember a session", async () => {
  const options = { headers: { "x-session-id": "js-chat" } };
  const say = (text) =>
    client.chat.completions.create({ model, messages: [user(text)] }, options);
  const first = await say("one");
  const second = await say("two");
  assert.equal(first.choices[0].message.content, "You said: one");
  assert.equal(second.choices[0].message.content, "You said: two");
  assert.ok(second.usage.prompt_tokens_details.cached_tokens > 0);
  assert.equal(second.choices[0].finish_reason, "stop");
});

test("chat completions stream", async () => {
  const stream = client.chat.completions.stream({ model, messages: [user("hello there")] });
  const deltas = [];
  stream.on("content", (delta) => deltas.push(delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, "You said: hello there");
  assert.equal(deltas.join(""), "You said: hello there");
});

test("responses continue one another and fork", async () => {
  const first = await client.responses.create({ model, input: "one", instructions: "Be brief." });
  assert.equal(first.output_text, "You said: one");
  const next = { model, previous_response_id: first.id };
  const second = await client.responses.create({ ...next, input: "two" });
  const other = await client.responses.create({ ...next, input: "other" });
  assert.equal(second.output_text, "You said: two");
  assert.equal(other.output_text, "You said: other");
  assert.equal(other.instructions, "Be brief.");
  assert.ok(other.usage.input_tokens_details.cached_tokens > 0);
  assert.equal((await client.responses.retrieve(other.id)).output_text, "You said: other");
  const items = await collect(client.responses.inputItems.list(other.id));
  assert.deepEqual(items.map((item) => item.content[0].text), ["other"]);
  await client.responses.delete(other.id);
  await refused(client.responses.retrieve(other.id), 404, "response_not_found");
});

test("responses stream through the client's accumulator", async () => {
  const stream = client.responses.stream({ model, input: "hello there" });
  const kinds = (await collect(stream)).map((event) => event.type);
  const final = await stream.finalResponse();
  assert.equal(kinds[0], "response.created");
  assert.equal(kinds.at(-1), "response.completed");
  assert.ok(kinds.includes("response.output_text.delta"));
  assert.equal(final.output_text, "You said: hello there");
});

test("tools are called and answered", async () => {
  const stream = client.responses.stream({ model, input: "call the tool", tools: [tool] });
  const first = await stream.finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { place: "Oslo" });
  const answer = { type: "function_call_output", call_id: call.call_id, output: "dry" };
  const last = await client.responses.create({
    model,
    input: [answer],
    tools: [tool],
    previous_response_id: first.id,
  });
  assert.equal(last.output_text, "It is dry.");
});

test("conversations keep items", async () => {
  const made = await client.conversations.create({ metadata: { topic: "js" }, items: [user("a")] });
  assert.equal(made.metadata.topic, "js");
  await client.responses.create({ model, input: "b", conversation: made.id });
  await client.conversations.items.create(made.id, { items: [user("c")] });
  const items = await collect(client.conversations.items.list(made.id, { order: "asc", limit: 2 }));
  const texts = items.map((item) => item.content[0].text);
  assert.deepEqual(texts, ["a", "b", "You said: b", "c"]);
  const last = items.at(-1).id;
  const found = await client.conversations.items.retrieve(last, { conversation_id: made.id });
  assert.equal(found.id, last);
  await client.conversations.items.delete(last, { conversation_id: made.id });
  assert.equal((await client.conversations.delete(made.id)).deleted, true);
  await refused(client.conversations.retrieve(made.id), 404, "conversation_not_found");
});

test("a request that the client sends again is answered once", async () => {
  const made = await client.conversations.create({});
  const done = await client.responses.create(
    { model, input: "once", conversation: made.id },
    { maxRetries: 2, headers: { "x-fault": "after" } },
  );
  assert.equal(done.output_text, "You said: once");
  const items = await collect(client.conversations.items.list(made.id));
  assert.equal(items.length, 2);
});

test("errors are the client's own classes with codes", async () => {
  const both = { previous_response_id: "resp_x", conversation: "conv_x" };
  const create = (change) => client.responses.create({ model, input: "a", ...change });
  await refused(create(both), 400, "mutually_exclusive_parameters");
  await refused(create({ previous_response_id: "resp_x" }), 404, "previous_response_not_found");
  await refused(create({ model: "other" }), 404, "model_not_found");
  await refused(create({ input: 5 }), 400, "invalid_value");
  const stranger = client.withOptions({ apiKey: "not-a-key-at-all" });
  await refused(stranger.models.list(), 401, "invalid_api_key");
});
