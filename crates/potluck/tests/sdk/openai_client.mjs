// OpenAI's own JavaScript client against a gateway: where the clients are, URL and model as arguments.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const [clients, url, model] = process.argv.slice(2);
const OpenAI = createRequire(`${clients}/node/`)('openai');
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 });
const ask = { model, messages: [{ role: 'user', content: 'What is 2+2?' }], temperature: 0, max_tokens: 16 };

const listed = [];
for await (const one of client.models.list()) listed.push(one.id);
assert.deepEqual(listed, [model]);

const whole = await client.chat.completions.create(ask);
assert.equal(whole.choices[0].finish_reason, 'stop');
assert.ok(whole.choices[0].message.content);

let text = '';
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? '';
}
assert.equal(text, whole.choices[0].message.content);

const runner = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
const final = await runner.finalChatCompletion();
assert.equal(final.choices[0].message.content, text);
assert.ok(final.usage.completion_tokens > 0);

const answers = await Promise.all([1, 2, 3, 4, 5, 6].map((n) =>
  client.chat.completions.create({ ...ask, messages: [{ role: 'user', content: `Say ${n}` }] })));
assert.ok(answers.every((answer) => answer.choices.length === 1));

const schema = {
  type: 'object', properties: { city: { type: 'string', maxLength: 12 } }, required: ['city'], additionalProperties: false,
};
const place = await client.chat.completions.create({
  ...ask, max_tokens: 64, response_format: { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } },
});
assert.deepEqual(Object.keys(JSON.parse(place.choices[0].message.content)), ['city']);

const tools = [{ type: 'function', function: { name: 'weather', parameters: schema } }];
const calling = { ...ask, max_tokens: 64, tools, tool_choice: 'required',
  messages: [{ role: 'user', content: 'What is the weather in Rome?' }] };
const called = (await client.chat.completions.create(calling)).choices[0];
assert.equal(called.finish_reason, 'tool_calls');
const [call] = called.message.tool_calls;
assert.equal(call.function.name, 'weather');
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ['city']);
const streamed = (await client.chat.completions.stream(calling).finalChatCompletion()).choices[0];
assert.equal(streamed.message.tool_calls[0].function.arguments, call.function.arguments);
assert.equal(streamed.message.content, called.message.content);
const after = [...calling.messages, called.message, { role: 'tool', tool_call_id: call.id, content: '12 degrees, rain' }];
assert.ok((await client.chat.completions.create({ ...ask, tools, messages: after })).choices[0].message);

const embedded = await client.embeddings.create({ model, input: ['The cat sat on the mat.', 'x'] });
assert.ok(embedded.data.every(({ embedding }) => Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3));

await assert.rejects(client.chat.completions.create({ ...ask, model: 'absent' }), (error) =>
  error instanceof OpenAI.NotFoundError && error.code === 'model_not_found' && error.requestID.length > 0);
await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), (error) =>
  error instanceof OpenAI.BadRequestError && error.param === 'temperature');

const running = async () => {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split('\n');
  return Number(lines.find((line) => line.startsWith('vllm:num_requests_running ')).split(' ')[1]);
};
const idle = async () => {
  const givenUp = Date.now() + 5_000;
  while (await running() > 0) assert.ok(Date.now() < givenUp, 'the answer went on without anybody who listened');
};
const long = { ...ask, messages: [{ role: 'user', content: 'Count to a thousand.' }], max_tokens: 900, ignore_eos: true };
const cancelled = await client.chat.completions.create({ ...long, stream: true });
for await (const _ of cancelled) break;
await idle();
const late = assert.rejects(client.chat.completions.create(long, { timeout: 2_000 }), OpenAI.APIConnectionTimeoutError);
while (await running() === 0);
await late;
await idle();
console.log('ok');
