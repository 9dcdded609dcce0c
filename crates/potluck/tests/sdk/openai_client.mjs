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

const embedded = await client.embeddings.create({ model, input: ['The cat sat on the mat.', 'x'] });
assert.ok(embedded.data.every(({ embedding }) => Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3));

await assert.rejects(client.chat.completions.create({ ...ask, model: 'absent' }), (error) =>
  error instanceof OpenAI.NotFoundError && error.code === 'model_not_found' && error.requestID.length > 0);
await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), (error) =>
  error instanceof OpenAI.BadRequestError && error.param === 'temperature');
console.log('ok');
