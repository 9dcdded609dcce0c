// A model that uses a tool: npm install openai; node tools.mjs "Is it raining in Rome?"
//
// `required` has the gateway see to it that the first answer is a call whose arguments fit the schema, whatever the model was trained for.
import OpenAI from "openai";

const url = process.env.POTLUCK_URL ?? "http://127.0.0.1:7575";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.POTLUCK_API_KEY ?? "none" });
const model = (await client.models.list()).data[0].id;

const weather = ({ city }) => ({ city, weather: "rain", celsius: 14 });
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "The weather of a city now",
      parameters: { type: "object", properties: { city: { type: "string", maxLength: 30 } }, required: ["city"] },
    },
  },
];

const messages = [{ role: "user", content: process.argv[2] ?? "Is it raining in Rome?" }];
const asked = await client.chat.completions.create({ model, messages, tools, tool_choice: "required", temperature: 0 });
messages.push(asked.choices[0].message);
for (const call of asked.choices[0].message.tool_calls) {
  const given = JSON.parse(call.function.arguments);
  const result = weather(given);
  console.log(`weather(${JSON.stringify(given)}) = ${JSON.stringify(result)}`);
  messages.push({ role: "tool", tool_call_id: call.id, content: JSON.stringify(result) });
}

const stream = await client.chat.completions.create({ model, messages, tools, tool_choice: "none", stream: true, max_tokens: 60, temperature: 0 });
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");
process.stdout.write("\n");
