-- Tells what is booked, after adding what a server booked while this store was away.
-- KEYS: budget
-- ARGV: window length in ms, window of the amount, amount (0: only tell)
-- Returns: booked, window
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length, amount = tonumber(ARGV[1]), tonumber(ARGV[3])
local window = math.floor(now / length)
local kept = redis.call('HMGET', KEYS[1], 'window', 'booked', 'length')
local booked = 0
if kept[1] and tonumber(kept[1]) == window and tonumber(kept[3]) == length then booked = tonumber(kept[2]) end
if amount ~= 0 and tonumber(ARGV[2]) == window then
  booked = booked + amount
  redis.call('HSET', KEYS[1], 'window', string.format('%.0f', window), 'booked', string.format('%.0f', booked), 'length', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], length * 2)
end
return { string.format('%.0f', booked), string.format('%.0f', window) }
