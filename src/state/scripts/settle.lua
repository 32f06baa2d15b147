-- Puts what was spent in the place of what was reserved; what more is spent is added.
-- KEYS: decision
-- ARGV: spent (-1: not told, the estimate stands), prefix of budgets, prefix of reservations that end, decision id,
--   what tells the report from others: one that was sent again, perhaps to another server, spends nothing more
-- Returns: the decision as text (empty: not known), booked, window
local kept = redis.call('HMGET', KEYS[1], 'pending', 'reserved', 'window')
if not kept[1] then return { '', '0', '0' } end
local pending = cjson.decode(kept[1])
if pending.budget == nil or pending.budget == cjson.null then return { kept[1], '0', '0' } end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reserved, length = tonumber(kept[2]), pending.budget[1]
local window = math.floor(now / length)
local spent = tonumber(ARGV[1])
if spent < 0 then spent = reserved end
local change = spent - reserved
-- A few are remembered, so that nobody can fill the store with reports of one decision.
if redis.call('HLEN', KEYS[1]) < 40 and redis.call('HSETNX', KEYS[1], ARGV[5], 1) == 0 then change = 0 end
redis.call('HSET', KEYS[1], 'reserved', 0)
redis.call('ZREM', ARGV[3] .. pending.account, ARGV[4])
-- Of what was reserved before the window turned only the excess is news.
if tonumber(kept[3]) ~= window then change = math.max(0, change) end
local budget = ARGV[2] .. pending.account
local held = redis.call('HMGET', budget, 'window', 'booked', 'length')
local booked = 0
if held[1] and tonumber(held[1]) == window and tonumber(held[3]) == length then booked = tonumber(held[2]) end
booked = booked + change
redis.call('HSET', budget, 'window', string.format('%.0f', window), 'booked', string.format('%.0f', booked), 'length', string.format('%.0f', length))
redis.call('PEXPIRE', budget, string.format('%.0f', length * 2))
return { kept[1], string.format('%.0f', booked), string.format('%.0f', window) }
